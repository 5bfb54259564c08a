"""Give DeepSpeed's sections of a configuration one meaning, for this project and for DeepSpeed alike.

``resolve`` replaces spellings that would be read in different ways, and ``problems`` reports what is left:
unknown keys, keys without an effect, and values of the wrong type. Neither imports DeepSpeed, so that reading
a configuration stays cheap.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from elc_bert.config.deepspeed_keys import KEYS, Keys, NoEffect, Type
from elc_bert.config.secrets import shown
from elc_bert.utils.text import did_you_mean

WORDS = {"True": True, "False": False}
"""Words that ``--set`` takes for JSON's booleans, because Python spells them so."""
_LARGEST = 2**63 - 1
_TINY = math.ulp(0.0)
_NUMBERS: dict[str, tuple[float, float, bool, str]] = {
    "integer": (0, _LARGEST, True, "a whole number of at least 0"),
    "positive integer": (1, _LARGEST, True, "a whole number of at least 1"),
    "exponent": (0, 64, True, "a whole number from 0 to 64"),
    "number": (0, math.inf, False, "a finite number of at least 0"),
    "positive number": (_TINY, math.inf, False, "a finite number above 0"),
}
"""Smallest and largest value of each type of number, whether it is whole, and what a message says."""
_NAMES = {"switch": "true or false", "text": "text", "list": "a list", "any": ""}
_NEVER_AUTO = ("stage", "device", "enabled")
"""Keys of ``zero_optimization`` for which ``"auto"`` would be a guess."""


def resolve(content: Mapping[str, Any], of_earlier_version: bool = False) -> dict[str, Any]:
    """Return a configuration in which DeepSpeed's sections hold no word for a boolean and no ``"auto"``.

    Under ``zero_optimization``, ``"auto"`` means DeepSpeed's default, so the key is left out. Parameters of
    ZeRO 3 get the names that DeepSpeed documents. Whatever reads the configuration, DeepSpeed included, reads
    the result, so that all agree on it. Values that ``problems`` reports are left as they are.

    Args:
        content: Content of a configuration file.
        of_earlier_version: True for a file that an earlier version may have written. In these, ``"auto"``
            meant DeepSpeed's default everywhere.
    """
    resolved = dict(content)
    for name, keys in KEYS.items():
        if name in content:
            autos = "all" if of_earlier_version else "numbers" if name == "zero_optimization" else "none"
            resolved[name] = _resolve(content[name], keys, autos)
    return resolved


def _resolve(value: Any, keys: Type | NoEffect | Keys, autos: str) -> Any:
    if isinstance(keys, Mapping) and isinstance(value, Mapping):
        named = {_documented_name(name, keys): item for name, item in value.items()}
        if len(named) < len(value):
            return value  # a key is given under both of its names
        return {
            name: _resolve(item, keys.get(name, "any"), autos)
            for name, item in named.items()
            if not (
                item == "auto"
                and (autos == "all" or (autos == "numbers" and name in keys and name not in _NEVER_AUTO))
            )
        }
    if isinstance(value, str) and (keys == "switch" or isinstance(keys, NoEffect)):
        return WORDS.get(value, value)
    if isinstance(keys, str) and keys in _NUMBERS and isinstance(value, float | str):
        number = _number(value, whole=_NUMBERS[keys][2])
        return value if number is None else number
    return value


def _documented_name(name: str, keys: Keys) -> str:
    return f"stage3_{name}" if name not in keys and f"stage3_{name}" in keys else name


def problems(content: Mapping[str, Any], fields: Mapping[str, Any]) -> Iterator[str]:
    """Yield a message about each key of a resolved configuration that DeepSpeed would ignore or misread.

    Args:
        content: Result of ``resolve``.
        fields: Keys that this project defines, as nested dictionaries.
    """
    for name, value in content.items():
        if name not in fields:
            yield from _problems(name, value, KEYS, {**KEYS, **fields}, fields)


def _problems(
    name: str, value: Any, keys: Keys, valid: Mapping[str, Any], fields: Mapping[str, Any], parent: str = ""
) -> Iterator[str]:
    key = f"{parent}{name}"
    kind = keys.get(name)
    if kind is None:
        ours = fields.get("elc_bert", {}).get(parent.removesuffix("."), {})
        nearest = f"; did you mean elc_bert.{key}?" if name in ours else did_you_mean(name, valid)
        yield f"unknown key {key}{nearest}"
    elif isinstance(kind, NoEffect):
        if not _describes_what_happens(value, kind.accepted):
            yield f"{key}: {kind.advice}"
    elif isinstance(kind, Mapping):
        if isinstance(value, Mapping):
            for below, item in value.items():
                yield from _problems(below, item, kind, kind, fields, f"{key}.")
        elif value is not None:
            yield f"{key}: must be a section, not {value!r}"
    elif value is not None and (mismatch := _mismatch(value, kind)):
        yield f"{key} = {shown(key, value)}: {mismatch}"


def _describes_what_happens(value: Any, accepted: tuple[Any, ...]) -> bool:
    """Return whether a value is an accepted one, or a section that is switched off."""
    if isinstance(value, Mapping):
        return False in accepted and (_is_off(value.get("enabled", value)))
    return any(value is each or (isinstance(each, str) and value == each) for each in accepted)


def _is_off(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_off, value.values()))
    return value is None or value is False or value == "False"


def _mismatch(value: Any, kind: Type) -> str:
    """Return what a value of this type must be; empty if it is that."""
    if isinstance(kind, tuple):
        is_one = isinstance(value, str) and value.lower() in map(str.lower, kind)
        return "" if is_one else f"choose {', '.join(kind[:-1])} or {kind[-1]}"
    number = _number(value, kind in _NUMBERS and _NUMBERS[kind][2])
    smallest, largest = _NUMBERS[kind][:2] if kind in _NUMBERS else (-math.inf, math.inf)
    fits = {
        "switch": isinstance(value, bool),
        "text": isinstance(value, str) and value != "auto",
        "list": isinstance(value, list) or (isinstance(value, str) and value != "auto"),
        "any": True,
    }.get(kind, number is not None and smallest <= number <= largest)
    expected = _NUMBERS[kind][3] if kind in _NUMBERS else _NAMES[kind]
    if fits:
        return ""
    if value == "auto":
        return f"only Hugging Face's Trainer can fill this in; give {expected}, or remove the key"
    return f"must be {expected}"


def _number(value: Any, whole: bool) -> float | None:
    """Return a number, or the number that a text spells; None if there is none, or if it is not whole."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if whole and isinstance(value, int):
        return value  # not by way of a float, which would round large numbers
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if not math.isfinite(number):
        return None
    return number if not whole else int(number) if number.is_integer() else None
