"""DeepSpeed's files of a checkpoint: copied, written later with checksums, and read without running code."""

import copy
import functools
import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from torch import Tensor

from elc_bert.utils.files import sync_directory

#: The classes that DeepSpeed itself puts into its checkpoints; any other could run code when it is loaded.
CLASSES = [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]


def load_state(path: str | os.PathLike[str], mapped: bool = False) -> Any:
    """What was saved in a file of a checkpoint.

    Args:
        mapped: leave the tensors on disk until they are read.

    Raises:
        pickle.UnpicklingError: it holds more than tensors, plain values and DeepSpeed's own classes.
    """
    with torch.serialization.safe_globals(CLASSES):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


class BackgroundWriter(CheckpointEngine):
    """What a ``DeepSpeedEngine`` saves by: ``save`` copies in memory, ``write`` puts it on disk later.

    The directory that DeepSpeed names must exist.
    """

    def __init__(self) -> None:
        super().__init__()
        self.name = "BackgroundWriter"
        self._copies: list[tuple[Any, Path]] = []

    def create(self, info: CheckpointCommitInfo) -> None:
        self._copies = []

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Nothing: a directory that cannot be made must be told to all ranks, so it is made before."""

    def save(self, state_dict: Any, path: str) -> None:
        self._copies.append((_copied(state_dict, {}), Path(path)))

    def commit(self, info: CheckpointCommitInfo) -> bool:
        return True

    def load(self, path: str, map_location: Any = None) -> Any:
        return load_state(path)

    def write(self) -> dict[str, str]:
        """Put what has been saved since ``create`` on disk.

        Returns:
            SHA-256 by file name.

        Raises:
            OSError: with the file's name.
        """
        files = {}
        before = torch.serialization.get_crc32_options()
        torch.serialization.set_crc32_options(False)  # there are better checksums, and these take longer
        try:
            while self._copies:
                state, path = self._copies.pop(0)  # its memory is free as soon as it is written
                files[path.name] = write_hashed(path, functools.partial(torch.save, state))
        finally:
            torch.serialization.set_crc32_options(before)
        return files


def write_hashed(path: Path, write: Callable[[Any], object]) -> str:
    """Write a file by ``write(file)`` and put it on disk.

    Returns:
        SHA-256 of its bytes, in hexadecimal.

    Raises:
        OSError: with the file's name.
    """
    with open(path, "wb") as plain:
        file = _HashedFile(plain)
        try:
            write(file)
            plain.flush()
            os.fsync(plain.fileno())
        except Exception as error:
            # torch.save answers a failed write with an error of its own.
            cause = file.error or error
            if isinstance(cause, OSError):
                raise OSError(cause.errno, cause.strerror, os.fspath(path)) from None
            raise
    sync_directory(path.parent)
    return file.hash.hexdigest()


class _HashedFile:
    """An open file that knows the checksum of what has been written to it."""

    def __init__(self, file: IO[bytes]):
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


def _copied(value: Any, known: dict[Any, Tensor]) -> Any:
    """A copy of nested dictionaries and lists, with tensors in CPU memory; what is one tensor stays one."""
    if isinstance(value, Tensor):
        place = (value.untyped_storage().data_ptr(), value.storage_offset(), value.shape, value.stride())
        key = (*place, value.dtype, value.device) if value.numel() else id(value)
        if key not in known:
            known[key] = torch.empty(value.shape, dtype=value.dtype).copy_(value.detach())
        return known[key]
    if isinstance(value, dict):
        kind = OrderedDict if isinstance(value, OrderedDict) else dict
        return kind((key, _copied(each, known)) for key, each in value.items())
    if type(value) in (list, tuple):
        return type(value)(_copied(each, known) for each in value)
    return copy.copy(value) if isinstance(value, LossScaler | DynamicLossScaler) else value
