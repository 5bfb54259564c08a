"""Pretrain from several configurations in one launch of two ranks, with a fault on rank 1 in each run."""

import argparse
import contextlib
import hashlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from elc_bert.config.reader import load_config
from elc_bert.distributed.watchdog.watchdog import Watchdog
from elc_bert.engine.processes import connect, run_command
from elc_bert.training import loop, step
from elc_bert.training import pretrain as pretraining
from elc_bert.utils.errors import UserError
from tests.support.pretrain_each import allow_fp16


@dataclass
class Case:
    """A run and its faults."""

    config: str
    resume: str = "never"
    nan_gradients: list[int] = field(default_factory=list)
    """Steps whose gradient is NaN on rank 1, although the loss is finite."""
    bad_losses: dict[str, float] = field(default_factory=dict)
    """Number to add to the loss on rank 1, by step. It does not change the gradient."""
    flips: list[int] = field(default_factory=list)
    """Steps after which a bit of a weight changes on rank 1."""
    bad_state: list[int] = field(default_factory=list)
    """Steps after which a master weight, or with `bad_moment` a moment, is NaN on rank 1."""
    bad_moment: bool = False
    """True for a moment of the optimizer instead of a master weight."""
    overrides: list[str] = field(default_factory=list)
    """Overrides of the configuration on rank 1 only, as for ``--set``."""
    directories: list[str] = field(default_factory=list)
    """Working directory of each rank. Empty if the ranks share the usual one."""


class NanGradient(torch.autograd.Function):
    """Identity function whose gradient is NaN."""

    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", type=Path, help="JSON file of the cases, by name")
    parser.add_argument("--local_rank", help="set by the deepspeed launcher")
    arguments = parser.parse_args(argv)

    def command(watchdog) -> None:
        allow_fp16()
        rank = connect(watchdog).rank
        for name, fields in json.loads(arguments.cases.read_text(encoding="utf-8")).items():
            case = Case(**fields)
            directory = contextlib.chdir(case.directories[rank]) if case.directories else mock.MagicMock()
            try:
                with directory:
                    pretrain(case, rank, watchdog)
            except UserError as error:  # raised on all ranks
                print(f"\n{name}, rank {rank}: {error}", flush=True)

    run_command(command)


def pretrain(case: Case, rank: int, watchdog: Watchdog) -> None:
    """Run a case, and write the state of this rank after each step to ``run/rank-N.json``."""
    is_faulty = rank == 1
    config = load_config(Path(case.config), case.overrides if is_faulty else [])
    steps: dict[int, dict[str, Any]] = {}
    number = 0
    original_forward, original_step = step._forward, loop.train_step

    def forward(*arguments):
        loss, correct = original_forward(*arguments)
        if is_faulty and number in case.nan_gradients:
            loss = NanGradient.apply(loss)
        if is_faulty:
            loss = loss + case.bad_losses.get(str(number), 0.0)
        return loss, correct

    def train_step(engine, *arguments):
        nonlocal number
        number = engine.global_steps + 1
        result = original_step(engine, *arguments)
        steps[number] = {
            "state": fingerprint(engine),
            "learning_rate": engine.get_lr()[0],
            "skipped": engine.skipped_steps,
        }
        if is_faulty and number in case.flips:
            weights = [weight for weight in engine.module.parameters() if weight.numel()]
            weights[-1].data.view(-1)[:1].view(torch.uint8)[0] ^= 1
        if is_faulty and number in case.bad_state:
            spoil(engine, case.bad_moment)
        return result

    with mock.patch.object(step, "_forward", forward), mock.patch.object(loop, "train_step", train_step):
        try:
            pretraining.pretrain(config, watchdog, case.resume)
        finally:
            if steps:
                output = config.elc_bert.training.output_dir / f"rank-{rank}.json"
                output.write_text(json.dumps(steps), encoding="utf-8")


def spoil(engine: Any, moment: bool) -> None:
    """Make an element of a master weight or a moment NaN; the weights in the model stay as they are."""
    optimizer = engine.basic_optimizer
    masters = getattr(engine.optimizer, "fp32_partitioned_groups_flat", None)
    master = (masters or optimizer.param_groups[0]["params"])[0]
    tensor = optimizer.state[master]["exp_avg_sq"] if moment else master
    tensor.detach().view(-1)[0] = float("nan")


def fingerprint(engine: Any) -> str:
    """Return a hash of this rank's weights, master weights and optimizer state."""
    digest = hashlib.sha256()
    optimizer = engine.basic_optimizer
    weights = [getattr(weight, "ds_tensor", weight) for weight in engine.module.parameters()]
    masters = [master for group in optimizer.param_groups for master in group["params"]]
    masters += getattr(engine.optimizer, "fp32_partitioned_groups_flat", [])
    state = [value for values in optimizer.state.values() for value in values.values()]
    for value in [*weights, *masters, *state]:
        tensor = value.detach() if torch.is_tensor(value) else torch.tensor(float(value))
        digest.update(tensor.float().contiguous().numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main(sys.argv[1:])
