"""Helpers that know nothing of models: errors, files, the machine, progress bars, text."""
