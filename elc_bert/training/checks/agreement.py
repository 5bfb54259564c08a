"""Making sure that all ranks of a run are about to do the same: what differs is named.

Ranks with another configuration, other data or other code train a model that nobody asked for, or wait for
each other for ever.
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

#: Packages that decide what a step computes.
PACKAGES = ("torch", "deepspeed", "numpy", "tokenizers")
CODE = ("*.py", "*.c", "*.h")
SPOTS, SPOT_BYTES = 16, 1 << 12


def check_agreement(world: World, facts: Mapping[str, Any]) -> None:
    """Compare facts that all ranks must share. Collective: one all-reduce, unless something differs.

    Args:
        facts: JSON values by a name that is the user's own, such as a key or a file.

    Raises:
        UserError: on all ranks alike; names each difference, and the ranks and hosts on either side.
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


def ranks_in_words(ranks: Iterable[int], hosts: Sequence[str]) -> str:
    """``ranks 0-2 (node-a), rank 3 (node-b)``."""
    by_host = groupby(sorted(ranks), key=lambda rank: hosts[rank])
    parts = [(host, list(group)) for host, group in by_host]
    return ", ".join(
        f"rank{'s' * (len(group) > 1)} {numbers_in_short(group)} ({host})" for host, group in parts
    )


def _difference(values: Sequence[Any], hosts: Sequence[str]) -> str:
    """Each value with the ranks that have it, the most frequent first; "" if there is one value only."""
    ranks: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(value if isinstance(value, str) else json.dumps(value), []).append(rank)
    if len(ranks) == 1:
        return ""
    by_number = sorted(ranks.items(), key=lambda item: -len(item[1]))
    return ", ".join(f"{value} on {ranks_in_words(group, hosts)}" for value, group in by_number)


def facts_of_start(config: RunConfig, resume: str, init_from: Path | None, world: World) -> dict[str, Any]:
    """What must be the same before anything is done together: settings, code and versions."""
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
    """What must be the same of files, which each node may have on a disk of its own.

    Takes milliseconds for files of any size: of each only spots are read. The full checksums in the
    datasets' manifests are compared, but not computed.
    """
    streams = [*data.train.streams.values(), data.held_out.stream]
    sources = [source for stream in streams for source in stream.batch.sources]
    files = [config.elc_bert.data.tokenizer]
    for source in sources:
        prefix = source.dataset.prefix
        files += [with_suffix(prefix, ".bin"), with_suffix(prefix, ".idx"), source.segments.path]
    pairs = config.elc_bert.evaluation.minimal_pairs
    files += [] if pairs is None else sorted(pairs.glob("*.jsonl"))
    return _flattened(data.identity, "manifests") | {str(path): _at_a_glance(path) for path in files}


def _flattened(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {key: value}
    parts = (_flattened(below, f"{key}.{name}" if key else name) for name, below in value.items())
    return {name: leaf for part in parts for name, leaf in part.items()}


def _at_a_glance(path: Path) -> str:
    """Size of a file and a hash over spots of it, the first and the last bytes among them."""
    digest, size = hashlib.sha256(), path.stat().st_size
    with open(path, "rb") as file:
        for spot in range(SPOTS + 1):
            file.seek(max(0, size - SPOT_BYTES) * spot // SPOTS)
            digest.update(file.read(SPOT_BYTES))
    return f"{size} bytes, {digest.hexdigest()[:12]}"
