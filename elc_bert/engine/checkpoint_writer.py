"""Writer of DeepSpeed's checkpoint files: copied in memory first, written later, with checksums."""

import copy
import functools
import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import IO, Any

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from torch import Tensor

from elc_bert.engine.checkpoint_reader import load_state
from elc_bert.utils.files import sync_directory


class BackgroundWriter(CheckpointEngine):  # type: ignore[misc]  # DeepSpeed is untyped
    """Checkpoint engine of a ``DeepSpeedEngine``: ``save`` copies in memory, ``write`` writes to disk later.

    The directory that DeepSpeed names must exist.
    """

    def __init__(self) -> None:
        super().__init__()
        self.name = "BackgroundWriter"
        self._copies: list[tuple[Any, Path]] = []

    def create(self, info: CheckpointCommitInfo) -> None:
        """Start a checkpoint; DeepSpeed calls this before ``save``."""
        self._copies = []

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Do nothing: the caller creates the directory, so that a failure is raised on all ranks."""

    def save(self, state_dict: Any, path: str) -> None:
        """Copy a state to CPU memory."""
        self._copies.append((_copy_to_cpu(state_dict, {}), Path(path)))

    def commit(self, info: CheckpointCommitInfo) -> bool:
        """Return True: DeepSpeed's part of a checkpoint has nothing left to do."""
        return True

    def load(self, path: str, map_location: Any = None) -> Any:
        """Return a saved state, in CPU memory; see ``load_state``."""
        return load_state(path)

    def write(self) -> dict[str, str]:
        """Write the states saved since ``create`` to disk.

        Returns:
            SHA-256 by file name.

        Raises:
            OSError: A file cannot be written; the error names it.
        """
        files = {}
        before = torch.serialization.get_crc32_options()
        torch.serialization.set_crc32_options(False)  # SHA-256 is stronger, and faster here
        try:
            while self._copies:
                state, path = self._copies.pop(0)  # frees each copy as soon as it is written
                files[path.name] = write_hashed(path, functools.partial(torch.save, state))
        finally:
            torch.serialization.set_crc32_options(before)
        return files


def write_hashed(path: Path, write: Callable[[Any], object]) -> str:
    """Write a file with ``write(file)`` and sync it to disk.

    Returns:
        SHA-256 of the file, in hexadecimal.

    Raises:
        OSError: The file cannot be written; the error names it.
    """
    with open(path, "wb") as plain:
        file = _HashingFile(plain)
        try:
            write(file)
            plain.flush()
            os.fsync(plain.fileno())
        except Exception as error:
            # If a write fails, torch.save raises an exception of its own, which hides the OSError.
            cause = file.error or error
            if isinstance(cause, OSError):
                raise OSError(cause.errno, cause.strerror, os.fspath(path)) from None
            raise
    sync_directory(path.parent)
    return file.hash.hexdigest()


class _HashingFile:
    """An open file that computes the checksum of what is written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.hash = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            written = self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.hash.update(data)
        return written

    def flush(self) -> None:
        self._file.flush()


def _copy_to_cpu(value: Any, copies: dict[Hashable, Tensor]) -> Any:
    """Copy nested dictionaries and lists, with tensors in CPU memory.

    Args:
        value: Value to copy.
        copies: Tensors copied so far, so that a tensor that occurs twice is copied once.
    """
    if isinstance(value, Tensor):
        view = (value.untyped_storage().data_ptr(), value.storage_offset(), value.shape, value.stride())
        key: Hashable = (*view, value.dtype, value.device) if value.numel() else id(value)
        if key not in copies:
            copies[key] = torch.empty(value.shape, dtype=value.dtype).copy_(value.detach())
        return copies[key]
    if isinstance(value, dict):
        kind = OrderedDict if isinstance(value, OrderedDict) else dict
        return kind((key, _copy_to_cpu(each, copies)) for key, each in value.items())
    if type(value) in (list, tuple):
        return type(value)(_copy_to_cpu(each, copies) for each in value)
    return copy.copy(value) if isinstance(value, LossScaler | DynamicLossScaler) else value
