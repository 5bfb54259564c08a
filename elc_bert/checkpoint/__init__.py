"""Checkpoints: written in the background, verified before use, readable by any layout of ranks."""
