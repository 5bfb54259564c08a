"""Callbacks: what happens periodically during training."""
