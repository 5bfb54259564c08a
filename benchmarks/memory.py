"""Compare the planner's memory figure with the peak memory of training; see ``--help``."""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from reporting import add_json, report_to_user
from tqdm import tqdm

from elc_bert.config.reader import load_config
from elc_bert.config.schema import RunConfig
from elc_bert.utils.errors import UserError
from elc_bert.utils.files import atomic_write
from elc_bert.utils.machine import free_port
from elc_bert_launch.options import add_local_rank

MIB = 2**20
BASE = [
    "elc_bert.model.hidden_size=768",
    "elc_bert.model.intermediate_size=2048",
    "elc_bert.model.num_attention_heads=12",
]
RUNS: dict[str, tuple[int, list[str]]] = {
    "activations: small, 32 x 128": (1, ["train_batch_size=32"]),
    "outputs of layers: small, 8 x 512, activation checkpointing": (
        1,
        [
            "train_batch_size=8",
            "elc_bert.training.sequence_length=512",
            "elc_bert.training.activation_checkpointing=true",
        ],
    ),
    "optimizer and reduction: base, 4 x 128, ZeRO 1 on 2 ranks": (
        2,
        [*BASE, "train_batch_size=8", "zero_optimization.stage=1"],
    ),
}
"""Number of ranks and overrides of ds_configs/strict_small.json for each run, in addition to ``SHORT``."""
SHORT = [
    "elc_bert.training.max_steps=3",
    "elc_bert.training.long_after=1",
    "elc_bert.evaluation.sequences=8",
    "elc_bert.data.workers=0",
    "elc_bert.data.pack=false",  # packing would leave rows of this small batch unused
    "bf16.enabled=false",
    "data_types={}",
    "zero_optimization.stage=0",
    "tensorboard.enabled=false",
]
"""Overrides that make a run short and use fp32."""
EPILOG = """what is measured:
  The peak memory of the process that needs the most in a run of three steps, with the project's own training
  function and DeepSpeed: resident memory on a CPU, PyTorch's memory_allocated on a GPU (without the CUDA
  context, which the prediction leaves out too).
  On a CPU, tensors are allocated on the C library's heap, and freed blocks between live ones leave holes,
  depending on the order of allocations. The planner counts tensors only. So each run is made twice: once with
  every tensor in pages that are returned when it is freed (MALLOC_MMAP_THRESHOLD_), for the comparison, and
  once as users run it, to show the fragmentation.

example:
  python benchmarks/memory.py --train data/demo/train --dev data/demo/dev --tokenizer data/demo/tokenizer.json
"""


@dataclass(frozen=True)
class Comparison:
    """Peak memory for one configuration, in bytes."""

    name: str
    predicted: float
    measured: float
    fragmented: float
    """Measured peak with the C library's default settings, which users have."""

    @property
    def ratio(self) -> float:
        """Predicted peak divided by measured peak."""
        return self.predicted / self.measured


@dataclass(frozen=True)
class MemoryReport:
    """Results of the benchmark."""

    comparisons: list[Comparison]

    def lines(self) -> list[str]:
        """Return the results as a table."""
        width = max(len(each.name) for each in self.comparisons)
        heading = f"{'':{width}}  {'planned':>9}  {'measured':>9}  {'ratio':>5}  {'as trained':>10}  MiB"
        return [heading] + [
            f"{each.name:{width}}  {each.predicted / MIB:9.0f}  {each.measured / MIB:9.0f}  "
            f"{each.ratio:5.3f}  {each.fragmented / MIB:10.0f}"
            for each in self.comparisons
        ]


def compare(arguments: argparse.Namespace) -> MemoryReport:
    """Predict and measure the peak memory of every run."""
    with tempfile.TemporaryDirectory() as folder, tqdm(total=2 * len(RUNS), leave=False) as bar:
        comparisons = []
        for number, (name, (ranks, changes)) in enumerate(RUNS.items()):
            overrides = [*SHORT, *changes, *_path_overrides(arguments, Path(folder) / str(number))]
            file = Path(folder) / f"{number}.json"
            config = load_config(arguments.config, overrides)
            with atomic_write(file, "w") as stream:
                stream.write(config.model_dump_json())
            peaks = []
            for default_heap in (False, True):
                bar.set_description(name)
                shutil.rmtree(config.elc_bert.training.output_dir, ignore_errors=True)
                peaks.append(measured_peak(file, ranks, default_heap))
                bar.update()
            comparisons.append(Comparison(name, predicted_peak(config, ranks), *peaks))
    return MemoryReport(comparisons)


def _path_overrides(arguments: argparse.Namespace, output: Path) -> list[str]:
    from elc_bert.data.format.vocabulary import load_tokenizer

    data = {"train": arguments.train, "dev": arguments.dev, "tokenizer": arguments.tokenizer}
    size = load_tokenizer(arguments.tokenizer).get_vocab_size()
    return [
        *(f"elc_bert.data.{key}={path.resolve()}" for key, path in data.items()),
        f"elc_bert.model.vocab_size={size}",
        f"elc_bert.training.output_dir={output}",
    ]


def predicted_peak(config: RunConfig, ranks: int) -> float:
    """Return the planner's figure for the rank that needs the most memory."""
    import torch

    from elc_bert.kernels import kernels_for
    from elc_bert.kernels.reference import Kernels
    from elc_bert.planner.devices import Device
    from elc_bert.planner.plan import Machine, make_plan

    on_cpu = not torch.cuda.is_available()
    chosen = kernels_for("cpu" if on_cpu else "cuda", config.elc_bert.training.kernels)
    kernels = "plain" if type(chosen) is Kernels else "fused"
    device = Device("this", 1.0, 1.0, 1.0, 1.0, is_cpu=on_cpu)
    memory = make_plan(config, Machine(device, ranks, 1.0, 1.0, kernels)).worst.memory
    return memory.total if on_cpu else memory.total - memory.baseline


def measured_peak(file: Path, ranks: int, default_heap: bool) -> float:
    """Return the peak of the rank that needs the most memory, in a separate run."""
    launcher = Path(sys.executable).with_name("deepspeed")
    port = str(free_port())
    command = [str(launcher), "--quiet", "--num_accelerators", str(ranks), "--master_port", port, __file__]
    environment = dict(os.environ)
    if not default_heap:
        environment["MALLOC_MMAP_THRESHOLD_"] = str(1 << 17)
    else:
        command.append("--default-heap")
    done = subprocess.run(
        [*command, "--child", str(file)], env=environment, capture_output=True, text=True, check=False
    )
    peaks = [float(found) for found in re.findall(r"^peak (\d+)$", done.stdout, re.MULTILINE)]
    if done.returncode or len(peaks) != ranks:
        raise UserError(f"{shlex.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return max(peaks)


def child(file: Path, default_heap: bool) -> NoReturn:
    """Train on one rank and print its peak memory."""
    import torch

    from elc_bert.distributed.watchdog.watchdog import Watchdog
    from elc_bert.engine import processes
    from elc_bert.training.metrics import peak_memory
    from elc_bert.training.pretrain import pretrain

    def command(watchdog: Watchdog) -> None:
        pretrain(load_config(file), watchdog)
        kind = "cuda" if torch.cuda.is_available() else "cpu"
        print(f"\npeak {peak_memory(torch.device(kind))}", flush=True)

    if not default_heap:
        processes.keep_freed_memory = lambda: None
    processes.run_command(command)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="memory.py",
        description="Compare the planner's memory figure with the peak of real training, for three\n"
        "configurations that are dominated by different parts of the memory.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root = Path(__file__).resolve().parents[1]
    data = root / "data" / "demo"
    parser.add_argument(
        "--config",
        type=Path,
        default=root / "ds_configs" / "strict_small.json",
        metavar="FILE",
        help="configuration of the run (default: ds_configs/strict_small.json)",
    )
    parser.add_argument(
        "--train",
        type=Path,
        default=data / "train",
        metavar="PREFIX",
        help="training dataset (default: the demo's)",
    )
    parser.add_argument(
        "--dev",
        type=Path,
        default=data / "dev",
        metavar="PREFIX",
        help="held-out dataset (default: the demo's)",
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        default=data / "tokenizer.json",
        metavar="FILE",
        help="tokenizer.json of both datasets (default: the demo's)",
    )
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--default-heap", action="store_true", help=argparse.SUPPRESS)
    add_local_rank(parser)
    add_json(parser)
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Run the benchmark and return the exit status."""
    arguments = parse_arguments(argv)
    if arguments.child:
        child(arguments.child, arguments.default_heap)
    return report_to_user("memory.py", arguments, compare)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
