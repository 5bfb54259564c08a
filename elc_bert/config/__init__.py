"""Typed configuration of a run: one JSON file, checked before anything starts."""
