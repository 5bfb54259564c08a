"""Start tiny runs with the real launchers, and read the values that they logged."""

import atexit
import contextlib
import functools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from elc_bert.utils.machine import free_port

REPOSITORY = Path(__file__).resolve().parents[2]
PRETRAIN = REPOSITORY / "launch" / "pretrain.py"
PRETRAIN_EACH = Path(__file__).with_name("pretrain_each.py")
"""Script that trains from several configurations in one launch, which saves the time of further launches."""
LAUNCHER_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "MASTER_",
    "LOCAL_",
    "GROUP_",
    "ROLE_",
    "OMPI_",
    "PMI",
    "SLURM_",
    "TORCHELASTIC",
)
"""Prefixes of the variables that launchers set, which tests must not pass on to runs of their own."""
TINY: dict[str, Any] = {
    "train_batch_size": 8,
    "zero_optimization": {"stage": 0},
    "optimizer": {"type": "Lamb", "params": {"lr": 0.01, "weight_decay": 0.1}},
    "scheduler": {"type": "Cosine", "params": {"warmup_proportion": 0.1}},
    "tensorboard": {"enabled": True},
    "elc_bert": {
        "model": {
            "vocab_size": 512,
            "hidden_size": 24,
            "num_attention_heads": 3,
            "num_hidden_layers": 2,
            "intermediate_size": 40,
            "max_position_embeddings": 128,
            "position_bucket_size": 8,
        },
        "data": {"workers": 0},
        "training": {"max_steps": 20, "sequence_length": 32, "long_after": 1.0, "max_micro_batch_size": 4},
        "evaluation": {"every": 1000, "sequences": 16},
        "checkpoint": {"every": 1000},
    },
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def write_config(directory: Path, dataset: Path, tokenizer: Path, **changes: Any) -> Path:
    """Write ``config.json`` of a run of 20 steps of 8 sequences of 32 tokens, which writes to ``run``.

    Args:
        directory: Directory of ``config.json`` and ``run``.
        dataset: Dataset for training and evaluation.
        tokenizer: Tokenizer of the dataset.
        changes: Changes of the configuration, by section. The name of a section of ``elc_bert`` stands for
            that section, as in ``training={"max_steps": 5}``; any other name for a top-level key.
    """
    elc_bert = {name: changes.pop(name) for name in list(changes) if name in TINY["elc_bert"]}
    paths = {
        "data": {"train": str(dataset), "dev": str(dataset), "tokenizer": str(tokenizer)},
        "training": {"output_dir": str(directory / "run")},
    }
    content = _merge(TINY, {"elc_bert": paths})
    content = _merge(content, {**changes, "elc_bert": elc_bert})
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "config.json"
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return path


def _merge(defaults: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested defaults with changes, which are merged section by section."""
    merged = dict(defaults)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


@dataclass(frozen=True)
class Result:
    """Exit status and output of a launch."""

    status: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def output(self) -> str:
        return self.stdout + self.stderr

    @property
    def errors(self) -> list[str]:
        """Error messages in the output, without their ``error: ``."""
        return re.findall(r"^error(?: on rank \d+)?: (.*)$", self.output, flags=re.MULTILINE)


def run(
    launcher: str, ranks: int, arguments: Sequence[Any], timeout: float = 120, script: Path = PRETRAIN
) -> Result:
    """Run a script to its end.

    Args:
        launcher: ``deepspeed``, ``torchrun``, ``mpirun``, ``python`` (one rank), or ``forked`` for tests in
            which the launcher has no part: ranks forked from a process that has imported everything.
        ranks: Number of ranks.
        arguments: Arguments of the script.
        timeout: Seconds after which the launch is killed.
        script: Script to run.

    Raises:
        TimeoutError: The launch took too long (``forked``).
        subprocess.TimeoutExpired: The launch took too long (other launchers).
    """
    if launcher == "forked":
        return FORK_SERVER.start(ranks, arguments, script).result(timeout)
    return finish(start(launcher, ranks, arguments, script), timeout)


def start(launcher: str, ranks: int, arguments: Sequence[Any], script: Path = PRETRAIN) -> subprocess.Popen:
    """Start a script in a process group of its own."""
    return spawn([*_launcher(launcher, ranks), script, *arguments])


def spawn(command: Sequence[Any]) -> subprocess.Popen:
    """Start a command in a process group of its own, in the repository and with ``environment``."""
    return subprocess.Popen(
        list(map(str, command)),
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, timeout: float = 120) -> Result:
    """Wait for the end of a launch, which is killed after ``timeout`` seconds."""
    begin = time.monotonic()
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    finally:
        kill(process)
    return Result(process.returncode, stdout, stderr, time.monotonic() - begin)


def kill(process: subprocess.Popen) -> None:
    """Kill a launcher and all its ranks."""
    with contextlib.suppress(psutil.NoSuchProcess):
        launcher = psutil.Process(process.pid)
        for running in [launcher, *launcher.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                running.kill()
    process.wait()


@dataclass
class ForkedJob:
    """Job that ``FORK_SERVER`` has started."""

    folder: Path
    """Folder of the job's output and status files."""
    begin: float
    """Start time, by ``time.monotonic``."""

    @property
    def pids(self) -> list[int]:
        """Process ids of the ranks."""
        path = self.folder / "pids"
        while not path.is_file() or not path.read_text():
            time.sleep(0.002)
        return [int(pid) for pid in path.read_text().split()]

    @property
    def has_ended(self) -> bool:
        return (self.folder / "status").is_file()

    def kill(self) -> None:
        """Kill all ranks and wait until they have ended."""
        self._kill_ranks()
        self.result(timeout=60)

    def result(self, timeout: float) -> Result:
        """Wait for the end of the job, which is killed ``timeout`` seconds after its start."""
        while not self.has_ended:
            if time.monotonic() > self.begin + timeout:
                self._kill_ranks()
                raise TimeoutError(f"no end after {timeout} s: {(self.folder / 'stderr').read_text()}")
            time.sleep(0.01)
        stdout, stderr, status = ((self.folder / name).read_text() for name in ("stdout", "stderr", "status"))
        return Result(int(status), stdout, stderr, time.monotonic() - self.begin)

    def _kill_ranks(self) -> None:
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class ForkServer:
    """Process that runs ``forked_ranks.py``. It starts with the first job and ends with the tests."""

    def start(self, ranks: int, arguments: Sequence[Any], script: Path = PRETRAIN) -> ForkedJob:
        """Start a script on several ranks."""
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        names = ("stdout", "stderr")
        for name in names:
            (folder / name).touch()
        job = {
            "ranks": ranks,
            "port": free_port(),
            "script": str(script),
            "arguments": [str(argument) for argument in arguments],
            **{name: str(folder / name) for name in (*names, "pids", "status")},
        }
        with self._lock:
            self._input.write(json.dumps(job) + "\n")
            self._input.flush()
        return ForkedJob(folder, time.monotonic())

    @functools.cached_property
    def _folder(self) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="forked-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return folder

    _lock = threading.Lock()

    @functools.cached_property
    def _input(self) -> IO[str]:
        log = self._folder / "log"
        with log.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("forked_ranks.py"))],
                cwd=REPOSITORY,
                env=environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        atexit.register(process.kill)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", log.read_text()
        return process.stdin


FORK_SERVER = ForkServer()


def _launcher(name: str, ranks: int) -> list[str]:
    scripts = Path(sys.executable).parent
    if name == "deepspeed":
        port = str(free_port())
        return [str(scripts / name), "--num_accelerators", str(ranks), "--master_port", port]
    if name == "torchrun":
        return [str(scripts / name), "--standalone", "--nproc-per-node", str(ranks)]
    if name == "mpirun":
        return [str(scripts / name), "--oversubscribe", "-n", str(ranks), sys.executable]
    return [sys.executable]


def environment() -> dict[str, str]:
    """Return the environment of a run: that of the tests, without a launcher's variables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER_VARIABLES)}
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}",
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        # Containers run as root, which Open MPI refuses without these.
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }


def events(output_dir: Path) -> EventAccumulator:
    """Return the TensorBoard events of a run."""
    no_limit = {"scalars": 0, "images": 0, "tensors": 0}
    return EventAccumulator(str(output_dir / "tensorboard"), size_guidance=no_limit).Reload()


def scalars(output_dir: Path, tag: str) -> dict[int, float]:
    """Return the values of a TensorBoard tag, by step."""
    return {event.step: event.value for event in events(output_dir).Scalars(tag)}


def losses(output_dir: Path) -> dict[int, float]:
    """Return the training loss, by step."""
    return scalars(output_dir, "train/loss")


def last_step(output_dir: Path) -> int:
    """Return the last step that a run has logged, or 0."""
    if not (output_dir / "tensorboard").is_dir():
        return 0
    logged = events(output_dir)
    return logged.Scalars("train/loss")[-1].step if "train/loss" in logged.Tags()["scalars"] else 0


def largest_difference(curve: Mapping[int, float], expected: Mapping[int, float]) -> float:
    """Return the largest relative difference between two curves, which must have the same steps."""
    assert list(curve) == list(expected)
    assert all(map(math.isfinite, (*curve.values(), *expected.values())))  # max() passes over NaN
    return max(abs(curve[step] - expected[step]) / abs(expected[step]) for step in curve)


def poll(timeout: float) -> Iterator[float]:
    """Yield the seconds that have passed, five times per second, until the loop ends or the time is up.

    Raises:
        TimeoutError: The loop did not end in time.
    """
    begin = time.monotonic()
    while (passed := time.monotonic() - begin) < timeout:
        yield passed
        time.sleep(0.2)
    raise TimeoutError(f"no end after {timeout} s")
