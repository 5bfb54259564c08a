"""Settings of an evaluation on minimal pairs: they name its results, and every figure shown names them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from elc_bert.evaluation.pseudo_likelihood import Method

V = TypeVar("V")
_NAME = re.compile(r"(within-word|plain)(?:-first-([1-9]\d*))?")
_TAG = "minimal_pairs/"
OVERALL, PAIRS = "overall", "number_of_pairs"
"""Names of logged scalars that are not the accuracy on a phenomenon."""


@dataclass(frozen=True)
class PairSettings:
    """Settings on which the accuracy on a set of minimal pairs depends."""

    method: Method
    """Which tokens are masked together."""
    limit: int | None = None
    """Number of pairs scored of each paradigm, from the beginning; None for all."""

    @property
    def name(self) -> str:
        """Name of the results' folder, and part of the tags in TensorBoard, such as ``plain-first-20``."""
        return self.method if self.limit is None else f"{self.method}-first-{self.limit}"

    @classmethod
    def from_name(cls, name: str) -> "PairSettings | None":
        """Return the settings with this name, or None if it is not such a name."""
        match = _NAME.fullmatch(name)
        return None if match is None else cls(cast(Method, match[1]), int(match[2]) if match[2] else None)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "PairSettings":
        """Return the settings that ``settings.json`` contains.

        Raises:
            LookupError: A value is missing.
            ValueError: A value is invalid.
        """
        method, limit = content["method"], content["limit"]
        if method not in ("within-word", "plain") or not (limit is None or isinstance(limit, int)):
            raise ValueError("unknown method or limit")
        return cls(method, limit)

    def tag(self, name: str) -> str:
        """Return the TensorBoard tag of a scalar logged during training, such as the accuracy ``overall``."""
        return f"{_TAG}{self.name}/{name}"


def describe(settings: PairSettings | None, pairs: int | None) -> str:
    """Return what an accuracy was measured on, such as ``134 pairs, method plain, limit 2 per paradigm``.

    Args:
        settings: Settings of the evaluation; None if they are unknown.
        pairs: Number of pairs that were scored; None if it is unknown.
    """
    count = "unknown number of pairs" if pairs is None else f"{pairs:,} pair{'s' * (pairs != 1)}"
    return f"{count}, {describe_settings(settings)}"


def describe_settings(settings: PairSettings | None) -> str:
    """Return method and limit for display."""
    if settings is None:
        return "method and limit unknown"
    limit = "no limit" if settings.limit is None else f"limit {settings.limit:,} per paradigm"
    return f"method {settings.method}, {limit}"


def logged_pairs(
    scalars: Mapping[str, V], evaluation: Mapping[str, Any] | None = None
) -> dict[PairSettings, dict[str, list[V]]]:
    """Return what a run has logged about minimal pairs, by settings and by name.

    A name is that of a phenomenon, ``OVERALL`` or ``PAIRS``. It has two values if the run was started with an
    early version, whose tags do not name the settings: first the value under the early tag, for which the
    method was always ``within-word`` and the limit that of the configuration.

    Args:
        scalars: Logged values by tag.
        evaluation: The section ``elc_bert.evaluation`` of the run, as far as it is known.
    """
    limit = (evaluation or {}).get("minimal_pairs_limit", 20)
    early = PairSettings("within-word", limit if isinstance(limit, int) else None)
    found: dict[PairSettings, dict[str, list[V]]] = {}
    for tag in sorted(scalars):
        if tag.startswith(_TAG):
            name = tag.removeprefix(_TAG)
            first, slash, rest = name.partition("/")
            settings = PairSettings.from_name(first) if slash else None
            if settings is None:
                found.setdefault(early, {}).setdefault(name, []).insert(0, scalars[tag])
            else:
                found.setdefault(settings, {}).setdefault(rest, []).append(scalars[tag])
    return {settings: values for settings, values in found.items() if OVERALL in values}
