"""The C library of the model's kernels on a CPU: what its functions take, and how they are called."""

import ctypes
import functools
from ctypes import c_float, c_int64, c_uint32, c_uint64, c_void_p
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elc_bert.kernels.cpu.threads import run_on_threads
from elc_bert.utils.errors import UserError


class DropoutKey(ctypes.Structure):
    """Decides a dropout mask, and how what stays is scaled."""

    _fields_ = (("seed", c_uint64), ("scale", c_float), ("threshold", c_uint32))


def _arguments(*fields: tuple[str, Any]) -> type[ctypes.Structure]:
    return type(
        "Arguments", (ctypes.Structure,), {"_fields_": [("next", c_int64), ("tasks", c_int64), *fields]}
    )


_ATTENTION = _arguments(
    ("first", c_int64),
    *((name, c_void_p) for name in ("products", "gradient", "probabilities", "sequences", "runs")),
    *((name, c_int64) for name in ("num_runs", "heads", "length", "side", "half")),
    ("dropout", DropoutKey),
)
_GEGLU_NORM = _arguments(
    *((name, c_void_p) for name in ("x", "y", "gradient", "statistics")),
    *((name, c_int64) for name in ("rows", "width", "half")),
    ("eps", c_float),
)
_MIX = _arguments(
    *((name, c_void_p) for name in ("tensors", "shares", "sum", "gradient", "products")),
    *((name, c_int64) for name in ("count", "elements", "half")),
)
_CROSS_ENTROPY = _arguments(
    *((name, c_void_p) for name in ("logits", "targets", "log_sums", "losses", "correct", "gradient")),
    *((name, c_int64) for name in ("vocabulary", "half")),
    ("smoothing", c_float),
    ("scale", c_float),
)
_MULTIPLY = _arguments(
    *((name, c_void_p) for name in ("sgemm", "a", "b", "bias", "c")),
    *((name, c_int64) for name in ("m", "n", "k", "rows", "tiles")),
    *((f"{matrix}_{what}", c_int64) for matrix in "abc" for what in ("next", "row")),
    ("a_turned", c_int64),
    ("b_turned", c_int64),
)
_ARGUMENTS = {
    "multiply": _MULTIPLY,
    "dropout_pass": _arguments(
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
# As in kernels.c.
DROPOUT_ROW = 4096
GEGLU_ROWS = 8
MIX_BLOCK = 4096


@functools.cache
def library() -> ctypes.CDLL:
    spec = find_spec("elc_bert.kernels.cpu._kernels")
    if spec is None or spec.origin is None:
        raise UserError(
            "elc_bert.training.kernels: the CPU kernels were not built (no C compiler at installation): "
            "install one and run make clean setup, or set it to plain"
        )
    library = ctypes.CDLL(spec.origin)
    for name, arguments in _ARGUMENTS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = [ctypes.POINTER(arguments)], None
    return library


def run(name: str, **values: Any) -> None:
    """Call a function with these arguments, tensors and arrays as their addresses."""
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
    """Whether a tensor is of bfloat16, as the functions are told."""
    return int(tensor.dtype == torch.bfloat16)
