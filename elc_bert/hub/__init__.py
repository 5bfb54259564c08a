"""Exchange of models with other projects: Hugging Face folders and checkpoints of the reference code."""
