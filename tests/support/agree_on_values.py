"""Call every collective of ``elc_bert.distributed`` and write what this rank got to a JSON file."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from elc_bert.distributed import collectives
from elc_bert.distributed.world import World
from elc_bert.utils.errors import UserError


def fail_on(failing_rank: int, rank: int) -> str:
    if rank == failing_rank:
        raise UserError(f"file_{rank}.bin: missing")
    return f"result of rank {rank}"


def message_of(action: Callable[[], Any]) -> str | None:
    """Return the message of the shared error that an action raises, or None if it raises none."""
    try:
        action()
    except collectives.SharedUserError as error:
        return str(error)
    return None


def main(directory: Path) -> None:
    dist.init_process_group("gloo")
    rank, cpu = dist.get_rank(), torch.device("cpu")
    world = World(rank, dist.get_world_size(), cpu)
    got = {
        "agree": collectives.agree(world, fail_on, -1, rank=rank),
        "agree_error": message_of(lambda: collectives.agree(world, fail_on, 1, rank=rank)),
        "from_main": collectives.from_main(world, lambda: {"rank": rank}),
        "from_main_none": collectives.from_main(world, lambda: None),
        "from_main_error": message_of(lambda: collectives.from_main(world, lambda: fail_on(0, rank))),
        "raise_nothing": message_of(lambda: collectives.raise_on_all_ranks(None)),
        "raise_on_one": message_of(lambda: collectives.raise_on_all_ranks("key_1" if rank == 1 else None)),
        "raise_on_both": message_of(lambda: collectives.raise_on_all_ranks(f"key_{rank}")),
        "same": collectives.same_on_all_ranks(torch.tensor([3, -(2**63), 2**63 - 1])),
        "different": collectives.same_on_all_ranks(torch.tensor([3, rank])),
        "maximum": collectives.max_over_ranks([float(rank), -float(rank), 0.1], cpu),
    }
    (directory / f"rank_{rank}.json").write_text(json.dumps(got), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
