"""Masked training batches, as a pure function of the seed and the step."""
