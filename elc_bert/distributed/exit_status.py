"""Exit statuses of a run, for scripts that restart it. ``docs/faults.md`` has the table for users."""

DONE = 0
"""The run is finished."""
FAILED = 1
"""A user error, reported in one line, or a bug, with its traceback. A restart would not help."""
PREEMPTED = 75
"""Stopped by SIGTERM or SIGUSR1 after writing a checkpoint; ``--resume auto`` continues (EX_TEMPFAIL)."""
LOST_A_RANK = 76
"""A rank or host died or hung; ``--resume auto`` continues from the last checkpoint on the other hosts."""
