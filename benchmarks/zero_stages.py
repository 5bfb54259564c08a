"""Compare an ordinary LAMB with this project's LAMB under every ZeRO stage; see ``--help``."""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from elc_bert.config.reader import load_config
from elc_bert.utils.errors import run_single_process
from elc_bert.utils.files import atomic_write
from elc_bert.utils.machine import free_port
from elc_bert.utils.options import positive_int
from elc_bert_launch.options import add_config_options, add_local_rank

ROOT = Path(__file__).resolve().parents[1]
UNSHARDED = "unsharded"
KINDS = {"ours": "this project's LAMB", "plain": "an ordinary LAMB"}
"""Optimizer of a run, by the first part of the run's name."""
EXACT = [
    "bf16.enabled=false",
    "fp16.enabled=false",
    "elc_bert.training.log_every=1",
    "tensorboard.enabled=true",
]
"""Overrides of the configuration with which equal runs differ only by fp32 rounding."""
Curve = dict[int, float]
EQUAL = 2.0**-24
"""Value at which differences below float32 resolution are drawn; a logarithmic axis has no zero."""

EXAMPLE = """examples:
  after make demo:   python benchmarks/zero_stages.py
  your own data:     python benchmarks/zero_stages.py --deepspeed_config ds_configs/strict_small.json \\
                         --set train_batch_size=32 --stages 2 3
"""


def names_of(stages: Sequence[int]) -> list[str]:
    """Return the names of the runs, in the order in which they are made."""
    return [UNSHARDED, *(f"{kind}-stage-{stage}" for kind in KINDS for stage in stages)]


def settings_of(name: str) -> list[str]:
    """Return the overrides of a run, as arguments of ``--set``."""
    return [f"zero_optimization.stage={0 if name == UNSHARDED else int(name.rpartition('-')[2])}"]


def train_all(arguments: argparse.Namespace) -> None:
    """Make every run that is not finished yet, each in a launch of its own."""
    names = names_of(arguments.stages)
    for number, name in enumerate(names, start=1):
        print(f"[{number}/{len(names)}] {name}", flush=True)
        training = {
            "max_steps": arguments.steps,
            "max_nonfinite_steps": arguments.steps,  # do not stop, so that the curve shows these steps
            "output_dir": arguments.output / name,
        }
        sets = [*EXACT, *arguments.set, *settings_of(name)]
        sets += [f"elc_bert.training.{key}={value}" for key, value in training.items()]
        command = [
            str(Path(sys.executable).with_name("deepspeed")),
            "--quiet",
            *("--num_accelerators", str(arguments.ranks), "--master_port", str(free_port())),
            *(str(Path(__file__)), "--one", name, "--deepspeed_config", str(arguments.config)),
            *(word for setting in sets for word in ("--set", setting)),
        ]
        subprocess.run(command, cwd=ROOT, check=True)


def train_one(arguments: argparse.Namespace) -> None:
    """Make one run on the ranks of a launch, and resume it if it was interrupted."""
    from elc_bert.engine import build as engine
    from elc_bert.engine.processes import run_command
    from elc_bert.training.pretrain import pretrain

    if arguments.one.startswith("plain"):
        # An ordinary LAMB treats ZeRO's flat partitions as parameters. So does ours without fragments.
        engine.shard_lamb = lambda *ignored: None
    run_command(lambda watchdog: pretrain(load_config(arguments.config, arguments.set), watchdog, "auto"))


def losses(run: Path) -> Curve:
    """Return the training loss by step from TensorBoard's files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {event.step: event.value for event in log.Scalars("train/loss")}


def differences(curve: Mapping[int, float], reference: Mapping[int, float]) -> list[float]:
    """Return the relative difference at every step; it is infinite where the loss is NaN."""
    relative = [abs(curve[step] / loss - 1) for step, loss in reference.items()]
    return [math.inf if math.isnan(difference) else difference for difference in relative]


def report(curves: Mapping[str, Curve]) -> dict[str, Any]:
    """Print and return the losses at four steps and the largest difference from the unsharded run."""
    reference = curves[UNSHARDED]
    last = max(reference)
    shown = sorted({1, max(1, last // 4), max(1, last // 2), last})
    print(f"\n{'loss at step':16}" + "".join(f"{step:>10}" for step in shown) + "   largest difference")
    table = {}
    for name, curve in curves.items():
        difference = max(differences(curve, reference))
        table[name] = {"loss": {step: curve[step] for step in shown}, "largest_difference": difference}
        print(f"{name:16}" + "".join(f"{curve[step]:10.4f}" for step in shown) + f"{difference:21.1e}")
    return table


def draw(curves: Mapping[str, Curve], path: Path) -> None:
    """Draw the losses on the left and their differences from the unsharded run on the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    reference = curves[UNSHARDED]
    left.plot(
        reference.keys(), reference.values(), color="black", linewidth=3.5, alpha=0.35, label="unsharded"
    )
    colors = {"ours": "tab:blue", "plain": "tab:red"}
    dashes = {1: "-", 2: "--", 3: ":"}
    # Curves of this project's LAMB coincide with the unsharded run, so they are drawn last.
    for name in sorted(set(curves) - {UNSHARDED}, reverse=True):
        curve = curves[name]
        kind, stage = name.partition("-")[0], int(name.rpartition("-")[2])
        look = {"color": colors[kind], "linestyle": dashes[stage], "linewidth": 1.3}
        left.plot(curve.keys(), curve.values(), label=f"{KINDS[kind]}, ZeRO {stage}", **look)
        right.plot(reference.keys(), [max(EQUAL, value) for value in differences(curve, reference)], **look)
    left.set(xlabel="step", ylabel="training loss (nats)")
    left.legend(fontsize="small", frameon=False)
    right.set(xlabel="step", ylabel="relative difference from unsharded", yscale="log", ylim=EQUAL / 2)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=90)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="zero_stages.py",
        description="Pretrain from one configuration in fp32, unsharded and under ZeRO stages, once with "
        "this project's LAMB and once with an ordinary one, which computes one trust ratio per flat "
        "partition. Print the losses and draw them. Finished runs are not repeated.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_options(parser, default=Path("ds_configs/demo.json"))
    parser.add_argument(
        "--steps",
        type=positive_int,
        default=200,
        metavar="N",
        help="steps of each run (default: %(default)s)",
    )
    parser.add_argument(
        "--stages",
        type=int,
        nargs="+",
        default=[1, 2, 3],
        choices=(1, 2, 3),
        metavar="STAGE",
        help="ZeRO stages to compare (default: 1 2 3)",
    )
    parser.add_argument(
        "--ranks", type=positive_int, default=2, metavar="N", help="number of ranks (default: %(default)s)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/zero_stages"),
        metavar="DIR",
        help="folder for the runs, the table and the picture (default: %(default)s)",
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)  # what the launcher passes to each rank
    add_local_rank(parser)
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Run the benchmark and return the exit status."""
    arguments = parse_arguments(argv)
    if arguments.one:
        train_one(arguments)

    def command() -> None:
        train_all(arguments)
        curves = {name: losses(arguments.output / name) for name in names_of(arguments.stages)}
        with atomic_write(arguments.output / "zero_stages.json", "w") as file:
            json.dump(report(curves), file, indent=2)
        picture = arguments.output / "zero_stages.png"
        draw(curves, picture)
        print(f"\npicture: {picture}")

    try:
        return run_single_process(command, "zero_stages.py")
    except subprocess.CalledProcessError as error:
        print(f"zero_stages.py: stopped: a run ended with status {error.returncode}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
