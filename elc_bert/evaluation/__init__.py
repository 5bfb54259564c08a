"""Evaluation of a trained model: minimal pairs, held-out loss, masked words."""
