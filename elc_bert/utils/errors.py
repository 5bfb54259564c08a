"""Errors that a user can mend, and how a command ends on one."""

import errno
import os
import sys
from collections.abc import Callable

from elc_bert.utils.extras import explain_missing_package


class UserError(ValueError):
    """A mistake in what the user gave: one line that names the thing, says what is wrong and what to do.

    Entry points print the message without a traceback and exit with status 1; every other
    exception is a bug of ours and keeps its traceback.
    """


def told(error: OSError) -> str:
    """An error of the system in one line: the file, what is wrong, and what to do where the disk is full."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    mend = "; make room, and run the same command again" if full else ""
    return f"{error.filename}: {error.strerror or error}{mend}"


def exit_status(command: Callable[[], int | None], program: str) -> int:
    """Run a command of one process and turn its end into an exit status.

    Programs of several processes have ``training.distributed.run_command``.

    Args:
        command: returns an exit status, or None for 0; raises UserError for a mistake of the user's.
        program: name that the line on standard error begins with.

    Returns:
        That of the command; 1 after a line about a mistake or an unreadable file; 130 after Ctrl-C.
    """
    try:
        return command() or 0
    except UserError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{program}: interrupted; unfinished files were removed, finished ones stay", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output, such as `head`, has seen enough; Python must not flush to it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ModuleNotFoundError as error:
        message = explain_missing_package(error)
        if message is None:
            raise
        print(f"{program}: error: {message}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{program}: error: {told(error)}", file=sys.stderr)
        return 1
