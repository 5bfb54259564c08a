"""Types of command-line options, to be passed as ``type=`` to ``ArgumentParser.add_argument``.

argparse prints the name of a type in its message, as in ``invalid positive integer value: '0'``. The types
raise ValueError, so that this package does not depend on argparse.
"""

import math
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def _named(name: str) -> Callable[[Callable[[str], T]], Callable[[str], T]]:
    """Set the name by which argparse calls a type."""

    def decorate(parse: Callable[[str], T]) -> Callable[[str], T]:
        parse.__name__ = name
        return parse

    return decorate


@_named("positive integer")
def positive_int(text: str) -> int:
    """Return an integer of at least 1."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


@_named("non-negative integer")
def non_negative_int(text: str) -> int:
    """Return an integer of at least 0."""
    if (number := int(text)) < 0:
        raise ValueError
    return number


@_named("positive number")
def positive_float(text: str) -> float:
    """Return a finite number above 0."""
    number = float(text)
    if not (number > 0 and math.isfinite(number)):
        raise ValueError
    return number


@_named("share")
def share(text: str) -> float:
    """Return a number above 0 and at most 1."""
    number = float(text)
    if not 0 < number <= 1:
        raise ValueError
    return number
