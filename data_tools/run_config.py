"""Sequence lengths and segment policy that a run requires of its datasets, for the option ``--config``."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elc_bert.data.format.policies import POLICIES
from elc_bert.data.format.segments import POLICY, check_sequence_length
from elc_bert.utils.errors import UserError

SEQUENCE_LENGTH, LONG_AFTER, LONG_FACTOR = 128, 0.9, 4
"""Defaults of ``elc_bert.training``, and the factor by which sequences become longer. This package does not
import the configuration of a run; a test compares the two."""


@dataclass(frozen=True)
class RunNeeds:
    """Datasets of a run, and the segment indexes that it needs of them."""

    datasets: list[Path]
    """Prefixes of the training datasets and of the held-out dataset."""
    lengths: list[int]
    """Sequence lengths, ascending."""
    policy: str
    """Segment policy."""


def read_run_config(path: Path) -> RunNeeds:
    """Read the configuration of a run.

    Raises:
        UserError: The file cannot be read, or a value that is needed here is missing or wrong.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        ours: dict[str, Any] = content["elc_bert"]
        data, training = ours["data"], ours["training"]
        train = data["train"]
        entries = train if isinstance(train, list) else [train]
        names = [each["path"] if isinstance(each, dict) else each for each in entries]
        length = int(training.get("sequence_length", SEQUENCE_LENGTH))
        becomes_longer = float(training.get("long_after", LONG_AFTER)) < 1
        policy = data.get("segments", POLICY)
        datasets = [Path(name) for name in dict.fromkeys([*names, data["dev"]])]
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}; give the configuration of a run") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}; fix it there"
        ) from None
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(
            f"--config {path}: not the configuration of a run ({error!r}); see ds_configs/ for examples"
        ) from None
    if policy not in POLICIES:
        raise UserError(f"{path}: elc_bert.data.segments = {policy!r}: use one of: {', '.join(POLICIES)}")
    lengths = [length, LONG_FACTOR * length] if becomes_longer else [length]
    for each in lengths:
        check_sequence_length(each)
    return RunNeeds(datasets, lengths, policy)
