"""Models that leave and enter the project: Hugging Face folders and the reference's checkpoints."""
