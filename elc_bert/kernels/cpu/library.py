"""Interface to kernels.c: the argument structures of its functions, and calls to them."""

import ctypes
import functools
from ctypes import c_float, c_int64, c_uint32, c_uint64, c_void_p
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elc_bert.kernels.cpu.extension import load_extension
from elc_bert.kernels.cpu.threads import run_on_threads


class DropoutKey(ctypes.Structure):
    """The parameters that determine a dropout mask; ``struct dropout`` in kernels.c."""

    _fields_ = (("seed", c_uint64), ("scale", c_float), ("threshold", c_uint32))


def _structure(*fields: tuple[str, Any]) -> type[ctypes.Structure]:
    """Declare an argument structure, which always begins with the task counter and the number of tasks."""
    return type(
        "Arguments", (ctypes.Structure,), {"_fields_": [("next", c_int64), ("tasks", c_int64), *fields]}
    )


_ATTENTION = _structure(
    ("first", c_int64),
    *((name, c_void_p) for name in ("products", "gradient", "probabilities", "sequences", "runs")),
    *((name, c_int64) for name in ("num_runs", "heads", "length", "side", "half")),
    ("dropout", DropoutKey),
)
_GEGLU_NORM = _structure(
    *((name, c_void_p) for name in ("x", "y", "gradient", "statistics")),
    *((name, c_int64) for name in ("rows", "width", "half")),
    ("eps", c_float),
)
_MIX = _structure(
    *((name, c_void_p) for name in ("tensors", "shares", "sum", "gradient", "products")),
    *((name, c_int64) for name in ("count", "elements", "half")),
)
_CROSS_ENTROPY = _structure(
    *((name, c_void_p) for name in ("logits", "targets", "log_sums", "losses", "correct", "gradient")),
    *((name, c_int64) for name in ("vocabulary", "half")),
    ("smoothing", c_float),
    ("scale", c_float),
)
_MULTIPLY = _structure(
    *((name, c_void_p) for name in ("sgemm", "a", "b", "bias", "c")),
    *((name, c_int64) for name in ("m", "n", "k", "rows", "tiles")),
    *((f"{matrix}_{stride}", c_int64) for matrix in "abc" for stride in ("next", "row")),
    ("a_transposed", c_int64),
    ("b_transposed", c_int64),
)
_ARGUMENTS = {
    "multiply": _MULTIPLY,
    "dropout_pass": _structure(
        ("x", c_void_p), ("y", c_void_p), ("elements", c_int64), ("half", c_int64), ("dropout", DropoutKey)
    ),
    "attention_forward": _ATTENTION,
    "attention_backward": _ATTENTION,
    "geglu_norm_forward": _GEGLU_NORM,
    "geglu_norm_backward": _GEGLU_NORM,
    "combine": _MIX,
    "inner_products": _MIX,
    "cross_entropy_forward": _CROSS_ENTROPY,
    "cross_entropy_backward": _CROSS_ENTROPY,
}
DROPOUT_ROW = 4096
"""Number of elements per task. This constant and the next two must equal those in kernels.c."""
GEGLU_ROWS = 8
MIX_BLOCK = 4096


@functools.cache
def library() -> ctypes.CDLL:
    """Load the library.

    Raises:
        UserError: The library was not built when the package was installed.
    """
    return load_extension("elc_bert.kernels.cpu._kernels", _ARGUMENTS, "elc_bert.training.kernels", "plain")


def run(name: str, **values: Any) -> None:
    """Call a function of the library on all threads.

    Args:
        name: Name of the function.
        values: Fields of its argument structure. Tensors and arrays are passed by address.
    """
    arguments = _ARGUMENTS[name]()
    for key, value in values.items():
        if isinstance(value, Tensor):
            assert value.is_contiguous(), key
            value = value.data_ptr()
        elif isinstance(value, np.ndarray):
            value = value.ctypes.data
        setattr(arguments, key, value)
    run_on_threads(getattr(library(), name), arguments)


def is_half(tensor: Tensor) -> int:
    """Return 1 for a bfloat16 tensor and 0 for a float32 one: the field ``half`` of the structures."""
    return int(tensor.dtype == torch.bfloat16)
