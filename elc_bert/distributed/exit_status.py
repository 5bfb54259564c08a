"""Exit statuses of a run, which scripts that start it again understand (README has the table)."""

DONE = 0
#: A mistake of the user's, told in one line, or a bug, with its traceback: starting again would not help.
FAILED = 1
#: Stopped by SIGTERM or SIGUSR1 after a checkpoint (EX_TEMPFAIL of sysexits.h): ``--resume auto`` goes on.
PREEMPTED = 75
#: A rank or host died or hung: ``--resume auto`` goes on from the last checkpoint, on the hosts left.
LOST_A_RANK = 76
