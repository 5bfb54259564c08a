"""What a checkpoint costs: the wait, the writing, and going on from it; see ``--help``."""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reporting import add_json, positive, report_to_user

from elc_bert.checkpoint.manager import Checkpoints
from elc_bert.checkpoint.progress import Progress
from elc_bert.config.batch_plan import BatchPlan
from elc_bert.config.reader import load_config
from elc_bert.config.schema import RunConfig
from elc_bert.distributed.watchdog.watchdog import Watchdog
from elc_bert.distributed.world import World
from elc_bert.engine.build import build_engine
from elc_bert.engine.processes import connect
from elc_bert.training.find_micro_batch import full_batch
from elc_bert.training.step import train_step

ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30
BLOCK = 16 << 20

DESCRIPTION = """Saves checkpoints of a model while it trains on random tokens, in one process, and compares
with the same steps without, and with the disk: the speed at which a file of the checkpoint's size is written
and synced in the same run, and read back once the system has been asked to forget it."""
EXAMPLE = """example:
  python benchmarks/checkpoint.py --size base --sequences 8 --rounds 3
"""


@dataclass
class Figures:
    """Medians over the rounds, in seconds."""

    gib: float
    """Of a checkpoint."""
    step: float
    """A training step while nothing is written."""
    step_while_writing: float
    stall: float
    """That training waits when a checkpoint is begun."""
    write: float
    """From then until it is complete."""
    write_alone: float
    """The same while training waits for it."""
    disk_write: float
    """As many bytes in one file, with sync."""
    check: float
    """Reading every file and comparing its checksum."""
    load: float
    """Into an engine of the same layout, checked before."""
    load_other_layout: float
    """The same tensor by tensor, as after a change of devices or ZeRO stage."""
    disk_read: float
    """As many bytes from one file."""

    def lines(self) -> list[str]:
        def row(what: str, seconds: float, limit: float) -> str:
            return f"{what:<42}{seconds:8.2f} s {seconds / self.gib:7.2f} s/GiB {seconds / limit:8.2f} x disk"

        return [
            f"a checkpoint has {self.gib:.2f} GiB",
            f"{'a step':<42}{self.step:8.2f} s",
            f"{'a step while one is written':<42}{self.step_while_writing:8.2f} s",
            f"{'training waits for a checkpoint':<42}{self.stall:8.2f} s, {self.stall / self.step:.1%}",
            row("writing it, beside training", self.write, self.disk_write),
            row("writing it, while training waits", self.write_alone, self.disk_write),
            row("the disk: one file, with sync", self.disk_write, self.disk_write),
            row("going on: all files checked", self.check, self.disk_read),
            row("going on: loaded", self.load, self.disk_read),
            row("going on: loaded in another layout", self.load_other_layout, self.disk_read),
            row("the disk: one file, read", self.disk_read, self.disk_read),
        ]


def measure(arguments: argparse.Namespace) -> Figures:
    world = connect(Watchdog())
    file = ROOT / "ds_configs" / {"small": "strict_small.json", "base": "strict.json"}[arguments.size]
    with tempfile.TemporaryDirectory(dir=arguments.directory) as folder:
        settings = [f"elc_bert.training.output_dir={folder}", f"train_batch_size={arguments.sequences}"]
        settings += ["bf16.enabled=false", f"zero_optimization.stage={arguments.stage}"]
        config = load_config(file, settings)
        rounds = [Round(config, world, arguments.sequences).figures() for _ in range(arguments.rounds)]
    return Figures(*(statistics.median(column) for column in zip(*rounds, strict=True)))


class Round:
    """One engine, trained, saved and loaded again."""

    def __init__(self, config: RunConfig, world: World, sequences: int):
        self._world = world
        self._engine = build_engine(config, BatchPlan(sequences, 1, world.size), world)
        self._batch = full_batch(config, sequences, config.elc_bert.training.sequence_length)
        self._checkpoints = Checkpoints(config, world, identity={})
        self._directory = config.elc_bert.training.output_dir
        self._steps = 0

    def figures(self) -> tuple[float, ...]:
        """In the order of ``Figures``."""
        for _ in range(2):
            step = _seconds(self._step)
        stall = self._save()
        began = time.perf_counter()
        while self._checkpoints.state:
            step_while_writing = _seconds(self._step)
        self._checkpoints.finish()
        write = stall + time.perf_counter() - began
        write_alone = self._save() + _seconds(self._checkpoints.finish)
        path = next(self._directory.glob("checkpoints/step-*"))
        size = sum(each.stat().st_size for each in path.iterdir())
        plain = self._directory / "plain"
        disk_write = _seconds(lambda: _write(plain, size))
        forget(plain)
        disk_read = _seconds(lambda: _read(plain))
        plain.unlink()
        for each in path.iterdir():
            forget(each)
        check = _seconds(lambda: self._checkpoints.find("auto"))
        found = self._checkpoints.find("auto")
        assert found is not None
        load = _seconds(lambda: self._checkpoints.load(self._engine, *found))
        other = {**found[1], "layout": {}}
        load_other = _seconds(lambda: self._checkpoints.load(self._engine, path, other))
        return (
            *(size / GIB, step, step_while_writing, stall, write, write_alone),
            *(disk_write, check, load, load_other, disk_read),
        )

    def _step(self) -> None:
        train_step(self._engine, [self._batch], self._world, 0.0, seed=self._steps)
        self._steps += 1

    def _save(self) -> float:
        return self._checkpoints.save(self._engine, Progress(step=1))


def _seconds(action: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def _write(path: Path, size: int) -> None:
    block = os.urandom(BLOCK)
    with open(path, "wb") as file:
        for begin in range(0, size, BLOCK):
            file.write(block[: size - begin])
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> None:
    with open(path, "rb", buffering=0) as file:
        while file.read(BLOCK):
            pass


def forget(path: Path) -> None:
    """Ask the system to drop what it keeps of a file in memory."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks/checkpoint.py",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", choices=["small", "base"], default="base", help="of the model")
    parser.add_argument("--sequences", type=positive, default=8, metavar="N", help="in a step, of 128 tokens")
    parser.add_argument("--stage", type=int, choices=[0, 1, 2, 3], default=1, help="of ZeRO")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N")
    parser.add_argument(
        "--directory", type=Path, metavar="DIR", help="on the disk to measure (default: /tmp)"
    )
    add_json(parser)
    return report_to_user("benchmarks/checkpoint.py", parser.parse_args(argv), measure)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
