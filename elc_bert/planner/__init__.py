"""What a run will need before it is started: memory, communication and time, from its configuration alone."""
