"""Prediction of the memory, communication and time that a run needs, from its configuration alone."""
