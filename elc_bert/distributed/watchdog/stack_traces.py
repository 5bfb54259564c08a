"""Where a thread is: in which collective it waits, and which line called it."""

import sys
import sysconfig
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from traceback import FrameSummary

import torch.distributed as dist

#: Folders of the functions that wait for other ranks.
_COLLECTIVES = ("/torch/distributed/", "/deepspeed/comm/")
_OURS = str(Path(__file__).parents[2])
_LIBRARIES = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "<")


@dataclass(frozen=True)
class Whereabouts:
    """What a thread was seen doing."""

    collective: str
    """It waits for other ranks in this function; empty if it does something else."""
    text: str
    """In words, with file and line."""


def whereabouts() -> Whereabouts:
    """Of the main thread; or of another that waits in a collective, as autograd's do for a GPU."""
    frames = sys._current_frames()
    main = describe(traceback.extract_stack(frames.pop(threading.main_thread().ident or 0)))
    if main.collective:
        return main
    others = (describe(traceback.extract_stack(frame)) for frame in frames.values())
    return next((other for other in others if other.collective), main)


def peer_is_lost(error: BaseException) -> bool:
    """Whether an exception says no more than that a collective failed, as it does when a peer went away."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError)
        and bool(describe(traceback.extract_tb(error.__traceback__)).collective)
    )


def describe(stack: Sequence[FrameSummary]) -> Whereabouts:
    """The innermost end of a stack, whose last frame is the innermost, in words."""
    callers = list(stack)
    inside = []
    while callers and any(folder in callers[-1].filename for folder in _COLLECTIVES):
        inside.append(callers.pop())
    names = [frame.name for frame in reversed(inside) if "wrapper" not in frame.name]
    if "<module>" in names:
        callers, names = list(stack), []  # it is only being imported
    elif not inside and callers and ".wait(" in (callers[-1].line or ""):
        names = ["Work.wait"]  # of a collective begun before; it has no frame of its own
    caller = next((frame for frame in reversed(callers) if _is_ours(frame)), None)
    if names:
        return Whereabouts(names[0], f"waits in {names[0]}" + (f" of {_place(caller)}" if caller else ""))
    if not callers:
        return Whereabouts("", "in no Python code")
    place = _place(callers[-1])
    if caller not in (None, callers[-1]):
        place += f", called from {_place(caller)}"
    return Whereabouts("", f"in {place}")


def _is_ours(frame: FrameSummary) -> bool:
    """Whether it says something to the user: this package, DeepSpeed or a script."""
    file = frame.filename
    return file.startswith(_OURS) or "/deepspeed/" in file or not file.startswith(_LIBRARIES)


def _place(frame: FrameSummary) -> str:
    """Function, and file from the innermost folder of a package on."""
    parts = Path(frame.filename).parts
    start = next((parts.index(name) for name in ("elc_bert", "deepspeed", "torch") if name in parts), -2)
    return f"{frame.name} ({'/'.join(parts[start:])}:{frame.lineno})"
