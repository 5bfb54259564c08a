"""The training loop over a DeepSpeed engine."""
