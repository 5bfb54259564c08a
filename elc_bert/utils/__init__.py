"""General helpers that know nothing about models: errors, files, the machine, progress bars, text."""
