"""Cleaning of raw text: what is done to a corpus (`rules`) and how all cores share a file (`parallel`)."""
