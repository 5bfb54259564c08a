"""Launchers, collectives, signals, watchdog and exit statuses of the processes of a run."""
