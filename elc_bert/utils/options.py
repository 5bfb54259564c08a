"""Types of command-line options, to be passed as ``type=`` to ``ArgumentParser.add_argument``.

argparse prints the name of a type in its message, as in ``invalid positive integer value: '0'``. The types
raise ValueError, so that this package does not depend on argparse.
"""

import math
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
LARGEST = 10**12
"""Largest whole number that an option accepts, far above any useful one."""


def named(name: str) -> Callable[[Callable[[str], T]], Callable[[str], T]]:
    """Set the name by which argparse calls a type."""

    def decorate(parse: Callable[[str], T]) -> Callable[[str], T]:
        parse.__name__ = name
        return parse

    return decorate


@named("positive integer")
def positive_int(text: str) -> int:
    """Return an integer of at least 1."""
    return _integer(text, 1)


@named("non-negative integer")
def non_negative_int(text: str) -> int:
    """Return an integer of at least 0."""
    return _integer(text, 0)


@named("number of processes (1 to 4096)")
def process_count(text: str) -> int:
    """Return a number of processes of one host."""
    return _integer(text, 1, 4096)


@named("HOST:PORT")
def host_and_port(text: str) -> str:
    """Return a host name or address with a port, as it was given."""
    host, _, port = text.rpartition(":")
    if not host.strip() or host != host.strip():
        raise ValueError
    _integer(port, 1, 65535)
    return text


@named("positive number")
def positive_float(text: str) -> float:
    """Return a finite number above 0."""
    number = float(text)
    if not (number > 0 and math.isfinite(number)):
        raise ValueError
    return number


@named("share")
def share(text: str) -> float:
    """Return a number above 0 and at most 1."""
    number = float(text)
    if not 0 < number <= 1:
        raise ValueError
    return number


def _integer(text: str, smallest: int, largest: int = LARGEST) -> int:
    if not smallest <= (number := int(text)) <= largest:
        raise ValueError
    return number
