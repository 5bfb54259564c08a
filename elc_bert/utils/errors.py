"""User errors, and how a single-process command reports them."""

import errno
import io
import os
import sys
from collections.abc import Callable

from elc_bert.utils.extras import explain_missing_package


class UserError(ValueError):
    """A mistake in the user's input.

    The message is one line: it names the file or key, says what is wrong and what to do. Entry points print
    it without a traceback and exit with status 1. Any other exception is a bug and keeps its traceback.
    """


def describe_os_error(error: OSError) -> str:
    """Return one line that names the file and the problem, and says what to do if a limit is reached."""
    advice = limit_advice(error)
    return f"{error.filename}: {error.strerror or error}{advice and '; '}{advice}"


def limit_advice(error: BaseException) -> str:
    """Return what to do about a full disk, a long name or too many open files; empty for other errors."""
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "free some space and run the same command again"
    if code in (errno.EMFILE, errno.ENFILE):
        return "raise the limit on open files (ulimit -n) and run the same command again"
    if code == errno.ENAMETOOLONG:
        return "choose a shorter name"
    return ""


def describe_expected(error: BaseException) -> str | None:
    """Return a one-line message for an error that is not a bug in this program, or None for a bug.

    User errors, system errors such as a full disk, and missing optional packages are not bugs.
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        return describe_os_error(error)
    return explain_missing_package(error) if isinstance(error, ModuleNotFoundError) else None


def run_single_process(command: Callable[[], int | None], program: str) -> int:
    """Run a single-process command and return the program's exit status.

    Commands that run in several processes use ``run_command`` of ``elc_bert.engine`` instead.

    Args:
        command: Function to run. It returns an exit status, or None for 0, and raises UserError for user
            mistakes.
        program: Program name at the beginning of the error line on standard error.

    Returns:
        Exit status of the command; 1 after an error that ``describe_expected`` describes, 130 after Ctrl-C.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file name may hold any bytes, and a text characters that the encoding of the terminal lacks.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return command() or 0
    except KeyboardInterrupt:
        print(
            f"{program}: interrupted; unfinished files were removed, finished files were kept",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:
        # The process that reads the output, such as `head`, has exited. Without this, Python would fail again
        # when it flushes standard output at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        message = describe_expected(error)
        if message is None:
            raise
        print(f"{program}: error: {message}", file=sys.stderr)
        return 1
