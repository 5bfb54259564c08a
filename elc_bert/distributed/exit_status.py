"""Exit statuses of a run, for scripts that restart it. ``docs/faults.md`` has the table for users."""

DONE = 0
"""The run is finished."""
FAILED = 1
"""The run failed: a user error, in one line, or a bug, with its traceback. A restart would not help."""
PREEMPTED = 75
"""SIGTERM or SIGUSR1 stopped the run, which wrote a checkpoint; ``--resume auto`` continues (EX_TEMPFAIL)."""
LOST_A_RANK = 76
"""A rank or host died or hung; ``--resume auto`` continues from the last checkpoint on the other hosts."""
