"""Offline tools that turn text into token datasets for pretraining. Run them as ``python -m data_tools``."""
