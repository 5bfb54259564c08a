"""Description of the parts of the project that a test run did not cover, for the end of its output."""

import re
from collections import Counter
from collections.abc import Iterable

PARTS = (
    ("kernels and training on a GPU", r"machine's GPU|no GPU|CUDA"),
    ("Triton kernels", r"[Tt]riton"),
    ("C kernels", r"kernels"),
    ("runs on several hosts", r"several hosts|address"),
    ("jobs under Slurm", r"[Ss]lurm"),
    ("report pages in a browser", r"chromium"),
    ("real corpora, tokenizers and BLiMP", r"'?shared'?"),
    ("exports in older versions of transformers", r"transformers"),
    ("runs at Weights & Biases and Comet", r"pip install (wandb|comet_ml)"),
    ("the message about a missing wandb", r"wandb"),
    ("a full disk", r"disk"),
    ("figures of /proc", r"/proc"),
)
"""Parts of the project, each with a regular expression that matches the skip reasons of its tests."""


def part_of(reason: str) -> str:
    """Return the part of the project whose tests are skipped for a reason."""
    return next((part for part, pattern in PARTS if re.search(pattern, reason)), "other tests")


def describe_skips(reasons: Iterable[str]) -> list[str]:
    """Return a line for each part and reason, with the number of skipped tests or files.

    Args:
        reasons: Reason of each skipped test, and of each skipped file.
    """
    counts = Counter((part_of(reason), reason.removeprefix("Skipped: ")) for reason in reasons)
    return [f"{part} ({count} skipped): {reason}" for (part, reason), count in sorted(counts.items())]
