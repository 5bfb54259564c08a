"""Loading of the package's C libraries through ``ctypes``."""

import ctypes
from collections.abc import Mapping
from importlib.util import find_spec

from elc_bert.utils.errors import UserError


def load_extension(
    module: str, functions: Mapping[str, type[ctypes.Structure]], key: str, fallback: str
) -> ctypes.CDLL:
    """Load a C library that setup.py has built.

    Args:
        module: Module name under which setup.py builds the library.
        functions: Names of its functions, and the structure to which each takes a pointer. None of them
            returns a value.
        key: Configuration key that asks for the library, for the message.
        fallback: Value of the key that does without the library, for the message.

    Raises:
        UserError: The library was not built when the package was installed.
    """
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise UserError(
            f"{key}: the CPU kernels were not built, because there was no C compiler at installation; "
            f"install one and run make clean setup, or set the key to {fallback}"
        )
    library = ctypes.CDLL(spec.origin)
    for name, arguments in functions.items():
        function = getattr(library, name)
        function.argtypes, function.restype = [ctypes.POINTER(arguments)], None
    return library
