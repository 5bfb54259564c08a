"""Log messages of a run: on the terminal of rank 0, and with time and rank in a file.

Modules log with ``logging.getLogger(__name__)``. Rank 0 shows its messages on the terminal; every rank
appends to the file, ranks other than 0 only warnings and errors. Messages are kept in memory until the file
is open.
"""

import logging
import logging.handlers
import sys
import threading
from collections import deque
from pathlib import Path

from tqdm import tqdm

LOG_FILE = "train.log"
"""Name of the file in the output directory of a run."""
LEVELS = ("debug", "info", "warning", "error")
FILE_ONLY = {"file_only": True}
"""Value of ``extra`` for messages that the terminal shows by other means, such as the progress bar."""
_ROOT = logging.getLogger("elc_bert")
_EXTERNAL = logging.getLogger("DeepSpeed")
_ROOT.addHandler(logging.NullHandler())  # before ``configure``, Python would print errors twice
_BUFFERED_MESSAGES = 10_000
FLUSH_SECONDS = 2.0
"""Maximum number of seconds that a process waits for its log file when it ends."""


class LogFile(logging.Handler):
    """Log file, written by a thread, so that training does not wait for a file system that does not respond.

    A file that cannot be written is given up, with one warning on the terminal.

    Args:
        path: File to append to; it is created with the first message.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._lines: deque[str] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._stuck = False
        """True once a flush has timed out; nothing waits for the file after that."""

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record for writing."""
        line = self.format(record)
        with self._changed:
            self._lines.append(line)
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._write, name="log file", daemon=True)
                self._thread.start()

    def flush(self) -> None:
        """Wait until all records are written, but not longer than ``FLUSH_SECONDS``."""
        with self._changed:
            if not self._stuck:
                self._stuck = not self._changed.wait_for(lambda: not self._lines, FLUSH_SECONDS)

    def close(self) -> None:
        """Write what is queued, within ``FLUSH_SECONDS``, and close the file."""
        self.flush()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None and not self._stuck:
            self._thread.join(FLUSH_SECONDS)
        super().close()

    def _write(self) -> None:
        failed = False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._closing)
                if not self._lines:
                    return
                text = "".join(f"{line}\n" for line in self._lines)
                number = len(self._lines)
            failed = failed or not _append_text(self._path, text)
            with self._changed:
                for _ in range(number):
                    self._lines.popleft()
                self._changed.notify_all()


class _Terminal(logging.Handler):
    """Handler that prints messages on the terminal, above the progress bar if there is one.

    Once the terminal cannot be written, for example because the reader of a pipe has exited, messages go to
    the log file only.
    """

    _failed = False

    def emit(self, record: logging.LogRecord) -> None:
        if self._failed:
            return
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        stream = sys.stderr if record.levelno >= logging.ERROR else sys.stdout
        try:
            tqdm.write(f"{prefix}{self.format(record)}", file=stream)
            stream.flush()
        except OSError as error:
            self._failed = True
            _ROOT.warning("terminal: cannot be written: %s; messages are in this file only", error.strerror)


def configure(rank: int, level: str = "info") -> None:
    """Set up logging of this process, in place of any earlier set-up.

    Args:
        rank: Rank of this process.
        level: Least severe messages on the terminal, one of ``LEVELS``. The file has at least ``info``.
    """
    close()
    threshold = logging.getLevelNamesMapping()[level.upper()]
    in_file = min(threshold, logging.INFO) if rank == 0 else logging.WARNING
    buffer = logging.handlers.MemoryHandler(_BUFFERED_MESSAGES, flushLevel=logging.CRITICAL + 1)
    buffer.setLevel(in_file)
    _ROOT.addHandler(buffer)
    _EXTERNAL.addHandler(buffer)
    if rank == 0:
        terminal = _Terminal()
        # A filter runs before the handler's lock, which a blocked terminal may hold.
        terminal.addFilter(lambda record: not getattr(record, "file_only", False))
        terminal.setLevel(threshold)
        _ROOT.addHandler(terminal)
    _ROOT.setLevel(min(threshold, in_file))
    _ROOT.propagate = False


def open_file(path: Path, rank: int) -> None:
    """Write all messages, those logged so far included, to a file from now on."""
    file = LogFile(path)
    file.setFormatter(_formatter(f"rank {rank}"))
    for logger in (_ROOT, _EXTERNAL):
        for handler in list(logger.handlers):
            if isinstance(handler, logging.handlers.MemoryHandler):
                file.setLevel(handler.level)
                handler.setTarget(file)
                handler.flush()
                logger.removeHandler(handler)
                logger.addHandler(file)


def flush() -> None:
    """Wait until the messages logged so far are in the file, but not longer than ``FLUSH_SECONDS``."""
    for handler in list(_ROOT.handlers):
        if isinstance(handler, LogFile):
            handler.flush()


def append(path: Path, source: str, message: str) -> None:
    """Append one message to the log file of a run, from a process that is not one of its ranks.

    Args:
        path: Log file. Nothing is written before its directory exists.
        source: Name of the process.
        message: Message.
    """
    line = _formatter(source).format(_ROOT.makeRecord(_ROOT.name, logging.INFO, "", 0, message, (), None))

    def write() -> None:
        if path.parent.is_dir():
            _append_text(path, f"{line}\n")

    # The caller must not wait for a file system that does not respond.
    writer = threading.Thread(target=write, name="log file", daemon=True)
    writer.start()
    writer.join(FLUSH_SECONDS)


def _append_text(path: Path, text: str) -> bool:
    """Append text to a file; return False, with a warning on the terminal, if that fails."""
    try:
        with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as error:
        print(f"warning: {path}: cannot be written: {error.strerror}", file=sys.stderr, flush=True)
        return False
    return True


def _formatter(source: str) -> logging.Formatter:
    return logging.Formatter(f"%(asctime)s {source} %(levelname)s %(message)s")


def close() -> None:
    """Close the log file, and stop printing messages on the terminal."""
    for logger in (_ROOT, _EXTERNAL):
        for handler in list(logger.handlers):
            if isinstance(handler, LogFile | _Terminal | logging.handlers.MemoryHandler):
                logger.removeHandler(handler)
                if isinstance(handler, LogFile):
                    handler.close()
