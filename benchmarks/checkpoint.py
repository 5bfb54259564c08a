"""Measure what checkpoints cost: stalls, writing and loading; see ``--help``."""

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

from reporting import add_json, report_to_user

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
from elc_bert.utils.options import positive_int

ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30
BLOCK = 16 << 20

DESCRIPTION = """Save checkpoints of a model while it trains on random tokens in one process. Compare the
steps with steps during which nothing is written, and the checkpoint with the disk: the time to write and sync
a file of the same size in the same run, and to read it back after it was dropped from the page cache."""
EXAMPLE = """example:
  python benchmarks/checkpoint.py --size base --sequences 8 --rounds 3
"""


@dataclass
class Figures:
    """Medians over the rounds, in seconds."""

    gib: float
    """Size of a checkpoint in GiB."""
    step: float
    """Time of a training step while nothing is written."""
    step_while_writing: float
    """Time of a training step while a checkpoint is written."""
    stall: float
    """Time that training waits when a checkpoint is started."""
    write: float
    """Time until the checkpoint is complete, while training continues."""
    write_alone: float
    """Time until the checkpoint is complete, while training waits."""
    disk_write: float
    """Time to write and sync one file of the same size."""
    check: float
    """Time to read every file and compare its checksum."""
    load: float
    """Time to load the checked checkpoint into an engine with the same layout."""
    load_other_layout: float
    """Time to load it tensor by tensor, as when the number of devices or the ZeRO stage has changed."""
    disk_read: float
    """Time to read one file of the same size."""

    def lines(self) -> list[str]:
        """Return a table of the figures."""

        def row(what: str, seconds: float, limit: float) -> str:
            return f"{what:<42}{seconds:8.2f} s {seconds / self.gib:7.2f} s/GiB {seconds / limit:8.2f} x disk"

        return [
            f"size of a checkpoint: {self.gib:.2f} GiB",
            f"{'training step':<42}{self.step:8.2f} s",
            f"{'training step during writing':<42}{self.step_while_writing:8.2f} s",
            f"{'stall of training when it starts':<42}{self.stall:8.2f} s, {self.stall / self.step:.1%}",
            row("writing, in the background", self.write, self.disk_write),
            row("writing, while training waits", self.write_alone, self.disk_write),
            row("disk: one file, written and synced", self.disk_write, self.disk_write),
            row("resuming: checksums of all files", self.check, self.disk_read),
            row("resuming: loading", self.load, self.disk_read),
            row("resuming: loading in another layout", self.load_other_layout, self.disk_read),
            row("disk: one file, read", self.disk_read, self.disk_read),
        ]


def measure(arguments: argparse.Namespace) -> Figures:
    """Return the medians over all rounds."""
    world = connect(Watchdog())
    file = ROOT / "ds_configs" / {"small": "strict_small.json", "base": "strict.json"}[arguments.size]
    with tempfile.TemporaryDirectory(dir=arguments.directory) as folder:
        settings = [f"elc_bert.training.output_dir={folder}", f"train_batch_size={arguments.sequences}"]
        settings += ["bf16.enabled=false", f"zero_optimization.stage={arguments.stage}"]
        config = load_config(file, settings)
        rounds = [Round(config, world, arguments.sequences).figures() for _ in range(arguments.rounds)]
    return Figures(*(statistics.median(column) for column in zip(*rounds, strict=True)))


class Round:
    """One engine that is trained, saved and loaded again."""

    def __init__(self, config: RunConfig, world: World, sequences: int) -> None:
        self._world = world
        self._engine = build_engine(config, BatchPlan(sequences, 1, world.size), world)
        self._batch = full_batch(config, sequences, config.elc_bert.training.sequence_length)
        self._checkpoints = Checkpoints(config, world, identity={})
        self._directory = config.elc_bert.training.output_dir
        self._steps = 0

    def figures(self) -> tuple[float, ...]:
        """Measure once and return the results in the order of ``Figures``."""
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
        drop_from_cache(plain)
        disk_read = _seconds(lambda: _read(plain))
        plain.unlink()
        for each in path.iterdir():
            drop_from_cache(each)
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


def drop_from_cache(path: Path) -> None:
    """Ask the system to drop a file from the page cache."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main(argv: list[str]) -> int:
    """Run the benchmark and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/checkpoint.py",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--size", choices=["small", "base"], default="base", help="size of the model (default: base)"
    )
    parser.add_argument(
        "--sequences",
        type=positive_int,
        default=8,
        metavar="N",
        help="sequences of 128 tokens per step (default: %(default)s)",
    )
    parser.add_argument("--stage", type=int, choices=[0, 1, 2, 3], default=1, help="ZeRO stage (default: 1)")
    parser.add_argument(
        "--rounds", type=positive_int, default=3, metavar="N", help="number of repetitions (default: 3)"
    )
    parser.add_argument(
        "--directory",
        type=Path,
        metavar="DIR",
        help="folder on the disk to measure (default: the system's temporary folder)",
    )
    add_json(parser)
    return report_to_user("benchmarks/checkpoint.py", parser.parse_args(argv), measure)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
