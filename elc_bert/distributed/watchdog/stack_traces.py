"""Location of a thread: the collective that it waits in, and the line of code that called it."""

import sys
import sysconfig
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from traceback import FrameSummary

import torch.distributed as dist

_COLLECTIVES = ("/torch/distributed/", "/deepspeed/comm/")
"""Folders of the functions that wait for other ranks."""
_OWN_PACKAGE = str(Path(__file__).parents[2])
_LIBRARIES = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "<")


@dataclass(frozen=True)
class Location:
    """Location of a thread in the code."""

    collective: str
    """Collective that the thread waits in; empty if it does not wait for other ranks."""
    text: str
    """Description with function, file and line."""


def current_location() -> Location:
    """Return the location of the main thread.

    If another thread waits in a collective and the main thread does not, return that thread's: on a GPU the
    backward pass runs in threads of autograd.
    """
    frames = sys._current_frames()
    main = location_of(traceback.extract_stack(frames.pop(threading.main_thread().ident or 0)))
    if main.collective:
        return main
    others = (location_of(traceback.extract_stack(frame)) for frame in frames.values())
    return next((other for other in others if other.collective), main)


def is_failed_collective(error: BaseException) -> bool:
    """Return whether an exception only says that a collective failed, as it does when a peer is lost."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError)
        and bool(location_of(traceback.extract_tb(error.__traceback__)).collective)
    )


def location_of(stack: Sequence[FrameSummary]) -> Location:
    """Return the location that a stack shows.

    Args:
        stack: Frames of the stack, innermost last.
    """
    callers = list(stack)
    inside = []
    while callers and any(folder in callers[-1].filename for folder in _COLLECTIVES):
        inside.append(callers.pop())
    names = [frame.name for frame in reversed(inside) if "wrapper" not in frame.name]
    if "<module>" in names:
        callers, names = list(stack), []  # the module is only being imported
    elif not inside and callers and ".wait(" in (callers[-1].line or ""):
        names = ["Work.wait"]  # waits for an asynchronous collective, in C++ and therefore without a frame
    caller = next((frame for frame in reversed(callers) if _is_informative(frame)), None)
    if names:
        called_from = f", called from {_place(caller)}" if caller else ""
        return Location(names[0], f"waiting in {names[0]}{called_from}")
    if not callers:
        return Location("", "not in Python code")
    place = _place(callers[-1])
    if caller is not None and caller != callers[-1]:
        place += f", called from {_place(caller)}"
    return Location("", f"in {place}")


def _is_informative(frame: FrameSummary) -> bool:
    """Return whether a frame belongs to this package, DeepSpeed or a script, which the user knows."""
    file = frame.filename
    return file.startswith(_OWN_PACKAGE) or "/deepspeed/" in file or not file.startswith(_LIBRARIES)


def _place(frame: FrameSummary) -> str:
    """Return the function, the file as a path that starts at its package, and the line."""
    parts = Path(frame.filename).parts
    start = next((parts.index(name) for name in ("elc_bert", "deepspeed", "torch") if name in parts), -2)
    return f"{frame.name} ({'/'.join(parts[start:])}:{frame.lineno})"
