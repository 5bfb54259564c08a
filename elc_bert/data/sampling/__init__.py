"""Samples of a run as masked batches: a pure function of (seed, step)."""
