"""Say what a run will need before it is started; see ``--help``."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from elc_bert.config.reader import load_config
from elc_bert.utils.errors import run_single_process
from elc_bert.utils.files import atomic_write

EXAMPLES = """examples:
  python launch/plan.py --config ds_configs/strict.json --device H100 --devices 8
  python launch/plan.py --config ds_configs/xl.json --devices 64 --set zero_optimization.stage=2
  python launch/plan.py --config ds_configs/demo.json --device cpu --devices 2

devices: A100-40, A100-80, H100, H200, L4, RTX4090, MI250X (each half of one), MI300X with the figures of
their data sheets; cpu is this machine, measured. Any other by --peak and --memory.

assumptions: all sequences are full (data.pack takes fewer rows). A device reaches the share --mfu of its
peak; what activation checkpointing computes again takes time besides. Devices stand in a ring, at their own
links on one node of 8, else at 25 GB/s each; they exchange after they have computed, unless
zero_optimization.overlap_comm, which ZeRO 3 has by default. Memory is that of tensors: on a CPU, holes in
the heap come on top (benchmarks/memory.py).
"""


def positive(text: str) -> float:
    if not (number := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


def share(text: str) -> float:
    if not 0 < (number := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return number


def count(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="plan.py",
        description="Parameters, batch, memory, communication and time of a run, from its configuration.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the run, in JSON")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one key of the file; may be repeated",
    )
    parser.add_argument("--devices", type=count, default=1, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--device", default="A100-80", metavar="NAME", help="(default: %(default)s)")
    parser.add_argument("--peak", type=positive, metavar="TFLOPS", help="dense peak in the run's precision")
    parser.add_argument("--memory", type=positive, metavar="GIB", help="memory of a device")
    parser.add_argument("--interconnect", type=positive, metavar="GB/S", help="that each device can send")
    parser.add_argument(
        "--mfu", type=share, metavar="SHARE", help="of the peak that training reaches (default: 0.4)"
    )
    parser.add_argument(
        "--kernels",
        choices=("fused", "plain"),
        help="(default: as the configuration says)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also save all figures there")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    arguments = parse_arguments(argv)

    def command() -> None:
        config = load_config(arguments.config, arguments.set)
        # After the cheap checks: they load PyTorch.
        from elc_bert.planner.devices import GIB, find_device
        from elc_bert.planner.memory import kernels_of
        from elc_bert.planner.plan import Machine, as_json, as_text, make_plan, warnings
        from elc_bert.planner.timing import ASSUMED_MFU

        device = find_device(arguments.device, arguments.devices)
        if arguments.peak:
            device = dataclasses.replace(device, bf16_tflops=arguments.peak, fp32_tflops=arguments.peak)
        if arguments.memory:
            device = dataclasses.replace(device, memory=arguments.memory * GIB)
        bandwidth = arguments.interconnect or device.bandwidth(arguments.devices)
        kernels = arguments.kernels or kernels_of(config)
        machine = Machine(device, arguments.devices, bandwidth, arguments.mfu or ASSUMED_MFU, kernels)
        plan = make_plan(config, machine)
        print(as_text(plan))
        for line in warnings(plan):
            print(f"warning: {line}")
        if arguments.json:
            with atomic_write(arguments.json, "w") as file:
                json.dump(as_json(plan), file, indent=2)
                file.write("\n")

    return run_single_process(command, "plan.py")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
