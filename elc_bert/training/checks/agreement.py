"""Check that all ranks of a run are about to do the same; differences are named.

Ranks with different configurations, data or code would train a model that nobody asked for, or wait for each
other without end.
"""

import hashlib
import json
import platform
import socket
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import elc_bert
from elc_bert.config.schema import RunConfig
from elc_bert.data.format.indexed import with_suffix
from elc_bert.distributed.collectives import SharedUserError, same_on_all_ranks
from elc_bert.distributed.world import World
from elc_bert.training.data import RunData
from elc_bert.utils.files import sha256_of
from elc_bert.utils.text import numbers_in_short

PACKAGES = ("torch", "deepspeed", "numpy", "tokenizers")
"""Packages that decide what a step computes."""
CODE = ("*.py", "*.c", "*.h")
"""Patterns of the source files that are compared."""
SAMPLES, SAMPLE_BYTES = 16, 1 << 12
"""Number and size of the parts of a data file that are compared."""


def check_agreement(world: World, facts: Mapping[str, Any]) -> None:
    """Compare facts that all ranks must share. Collective: one all-reduce, unless something differs.

    Args:
        world: Processes of the run.
        facts: JSON values, by a name that the user knows, such as a key or a file.

    Raises:
        UserError: Something differs; the message names it, and the ranks and hosts on either side. Raised on
            all ranks.
    """
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).digest()
    numbers = [int.from_bytes(digest[begin : begin + 4]) for begin in range(0, len(digest), 4)]
    if same_on_all_ranks(torch.tensor(numbers, device=world.device)):
        return
    found: list[Any] = [None] * world.size
    dist.all_gather_object(found, (socket.gethostname(), dict(facts)))
    hosts, all_facts = zip(*found, strict=True)
    names = dict.fromkeys(name for each in all_facts for name in each)
    differences = [
        f"{name}: {difference}"
        for name in names
        if (difference := _difference([each.get(name, "missing") for each in all_facts], hosts))
    ]
    raise SharedUserError(f"the ranks of this run do not agree: {'; '.join(differences)}; make them the same")


def ranks_with_hosts(ranks: Iterable[int], hosts: Sequence[str]) -> str:
    """Return text such as ``ranks 0-2 (node-a), rank 3 (node-b)``.

    Args:
        ranks: Ranks to name.
        hosts: Host of every rank of the run.
    """
    by_host = groupby(sorted(ranks), key=lambda rank: hosts[rank])
    parts = [(host, list(group)) for host, group in by_host]
    return ", ".join(
        f"rank{'s' * (len(group) > 1)} {numbers_in_short(group)} ({host})" for host, group in parts
    )


def _difference(values: Sequence[Any], hosts: Sequence[str]) -> str:
    """Return each value with the ranks that have it, most frequent first; empty if all are equal."""
    ranks: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(value if isinstance(value, str) else json.dumps(value), []).append(rank)
    if len(ranks) == 1:
        return ""
    by_number = sorted(ranks.items(), key=lambda item: -len(item[1]))
    return ", ".join(f"{value} on {ranks_with_hosts(group, hosts)}" for value, group in by_number)


def facts_of_start(config: RunConfig, resume: str, init_from: Path | None, world: World) -> dict[str, Any]:
    """Return the facts to compare before anything is done together: settings, code and versions."""
    package = Path(elc_bert.__file__).parent
    code = sorted(path for pattern in CODE for path in package.rglob(pattern))
    return {
        **_flattened(config.model_dump(mode="json")),
        "--resume": resume,
        "--init-from": None if init_from is None else str(init_from),
        "kind of device": world.device.type,
        "Python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        **{f"code of elc_bert/{path.relative_to(package)}": sha256_of(path)[:12] for path in code},
    }


def facts_of_data(config: RunConfig, data: RunData) -> dict[str, Any]:
    """Return the facts to compare about data files, which each host may have on a disk of its own.

    It takes milliseconds for files of any size: only parts of them are read. The full checksums in the
    manifests of the datasets are compared, but not computed.
    """
    streams = [*data.train.streams.values(), data.held_out.stream]
    sources = [source for stream in streams for source in stream.batch.sources]
    files = [config.elc_bert.data.tokenizer]
    for source in sources:
        prefix = source.dataset.prefix
        files += [with_suffix(prefix, ".bin"), with_suffix(prefix, ".idx"), source.segments.path]
    pairs = config.elc_bert.evaluation.minimal_pairs
    files += [] if pairs is None else sorted(pairs.glob("*.jsonl"))
    return _flattened(data.identity, "manifests") | {str(path): _fingerprint(path) for path in files}


def _flattened(value: Any, key: str = "") -> dict[str, Any]:
    """Return the leaves of nested dictionaries, by dotted key."""
    if not isinstance(value, dict) or not value:
        return {key: value}
    parts = (_flattened(below, f"{key}.{name}" if key else name) for name, below in value.items())
    return {name: leaf for part in parts for name, leaf in part.items()}


def _fingerprint(path: Path) -> str:
    """Return the size of a file, and a hash of parts of it, the first and the last bytes among them."""
    digest, size = hashlib.sha256(), path.stat().st_size
    with open(path, "rb") as file:
        for number in range(SAMPLES + 1):
            file.seek(max(0, size - SAMPLE_BYTES) * number // SAMPLES)
            digest.update(file.read(SAMPLE_BYTES))
    return f"{size} bytes, {digest.hexdigest()[:12]}"
