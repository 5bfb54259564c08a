"""Cleaning of raw text: rules for each corpus (``rules``), applied to a file on all cores (``parallel``)."""
