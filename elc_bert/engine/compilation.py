"""Operations that DeepSpeed compiles when they are first used: announced, and with errors of one line.

Without this module, a run is silent for minutes, prints a compiler's output as a traceback, or waits without
end for the lock of a process that was killed while it compiled.
"""

import contextlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from elc_bert.utils.errors import UserError

logger = logging.getLogger(__name__)
ABANDONED_AFTER = 600.0
"""Seconds without a new file after which a lock counts as abandoned, if no process of this host has it open.
The process that compiles may run on another host with the same home directory."""
_POLL = 0.2
_USED_BY = {
    "fused_adam": "optimizer.params.torch_adam = false",
    "cpu_adam": "DeepSpeed's own Adam with zero_optimization.offload_optimizer",
    "fused_lion": "optimizer.type = Lion",
    "cpu_lion": "optimizer.type = Lion",
    "cpu_adagrad": "optimizer.type = Adagrad with zero_optimization.offload_optimizer",
    "async_io": "offloading to NVMe",
    "quantizer": "zero_optimization.zero_quantized_weights and zero_quantized_gradients",
}
"""Settings that need an operation, by its name."""


def guard_compilation() -> None:
    """Announce every compilation of DeepSpeed (0.19.8) in this process, and bound its waiting for locks.

    ``OpBuilder.jit_load`` compiles, and ``FileBaton.wait`` of PyTorch (2.13) waits for a lock. Check again
    when they are updated.
    """
    from deepspeed.ops.op_builder.builder import OpBuilder
    from torch.utils.file_baton import FileBaton

    terminal = sys.stdout  # it may be redirected while DeepSpeed builds its engine
    FileBaton.wait = lambda baton: _wait(baton, terminal)  # type: ignore[method-assign, assignment]
    if not hasattr(OpBuilder, "unguarded_jit_load"):
        OpBuilder.unguarded_jit_load = OpBuilder.jit_load
    OpBuilder.jit_load = _guarded(OpBuilder.unguarded_jit_load, terminal)


@contextlib.contextmanager
def explaining_failed_compilation() -> Iterator[None]:
    """Raise the ``UserError`` of a failed compilation within this block, which DeepSpeed may have wrapped."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or cause.__context__
        if cause is None or cause is error:
            raise
        raise cause from None


def _guarded(jit_load: Callable[..., Any], terminal: Any) -> Callable[..., Any]:
    def load(builder: Any, verbose: bool = True) -> Any:
        from torch.utils.cpp_extension import _get_build_directory

        name = builder.name
        folder = Path(_get_build_directory(name, verbose=False))
        is_there = (folder / f"{name}.so").exists()
        if not is_there:
            with contextlib.redirect_stdout(terminal):
                logger.info("compiling DeepSpeed's %s, which takes minutes; it is kept in %s", name, folder)
        try:
            if not is_there and shutil.which(compiler := os.environ.get("CXX", "c++")) is None:
                raise FileNotFoundError(f"{compiler} not found")  # PyTorch would print a page about this
            return jit_load(builder, verbose)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"DeepSpeed cannot compile its operation {name} ({_reason(error)}); install a C++ compiler "
                "and ninja, for GPUs also nvcc of PyTorch's CUDA version, or do without "
                f"{_USED_BY.get(name, 'the setting that needs it')}"
            ) from None

    return load


def _reason(error: Exception) -> str:
    """Return the line of a compiler's output that names the problem."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    words = ("error:", "not found", "No such file")
    line = next((line for line in lines if any(word in line for word in words)), lines[0])
    return line if len(line) <= 200 else f"{line[:200]}..."


def _wait(baton: Any, terminal: Any) -> None:
    """Wait until the process that compiles has released its lock.

    Raises:
        UserError: The lock is abandoned.
    """
    lock = Path(baton.lock_file_path)
    with contextlib.redirect_stdout(terminal):
        logger.info("%s: waiting for the process that compiles there", lock)
    while lock.exists():
        is_old = _seconds_since_change(lock.parent) > ABANDONED_AFTER
        # Its process may release the lock while the processes of this host are examined.
        if is_old and not _is_open_on_this_host(lock) and lock.exists():
            raise UserError(f"{lock}: left by a process that was killed while it compiled; remove this file")
        time.sleep(_POLL)


def _seconds_since_change(folder: Path) -> float:
    with contextlib.suppress(OSError):
        return time.time() - max(path.stat().st_mtime for path in folder.iterdir())
    return 0.0


def _is_open_on_this_host(path: Path) -> bool:
    """Return whether a process of this user has a file open (Linux; elsewhere false)."""
    target = os.path.realpath(path)
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(link) == target:
                return True
    return False
