"""Writing files of tensors."""

import errno
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def write_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, with the permissions that the umask gives, and sync it to disk.

    Args:
        tensors: Contiguous tensors on the CPU, by name.
        path: File to write.
        metadata: Strings to store in the file.

    Raises:
        OSError: The file cannot be written; the error names it.
    """
    # The library (as of 0.8) creates files that only their owner can read. A file created by Python has the
    # permissions of the umask, which can only be read by changing it for all threads.
    path.touch()
    permissions = stat.S_IMODE(path.stat().st_mode)
    try:
        save_file(dict(tensors), path, None if metadata is None else dict(metadata))
    except SafetensorError as error:
        # The library reports errors of the system as text only.
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from None
    path.chmod(permissions)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
