"""Predict what a run needs before it is started; see ``--help``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from elc_bert.config.reader import load_config
from elc_bert.utils.errors import run_single_process
from elc_bert.utils.options import positive_float, positive_int, share
from elc_bert_launch.options import add_config_options, command_line

EXAMPLES = """examples:
  python launch/plan.py --config ds_configs/strict.json --device H100 --devices 8
  python launch/plan.py --config ds_configs/xl.json --devices 64 --set zero_optimization.stage=2
  python launch/plan.py --config ds_configs/demo.json --device cpu --devices 2

devices:
  A100-40, A100-80, H100, H200, L4, RTX4090, MI250X (one of its two halves) and MI300X have the figures of
  their data sheets; cpu is this machine, measured. Describe any other device with --peak and --memory.

assumptions:
  All sequences are full; data.pack needs fewer rows. A device reaches the share --mfu of its peak, and
  activation checkpointing adds the time of what it recomputes. Devices form a ring, connected by their own
  links within a node of 8 and at 25 GB/s each beyond. Communication follows computation, except with
  zero_optimization.overlap_comm (the default of ZeRO 3). Memory is the sum of all tensors; on a CPU,
  fragmentation of the heap comes on top (see benchmarks/memory.py).
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command_line(
        "Predict parameters, batch, memory, communication and time of a run from its configuration.", EXAMPLES
    )
    add_config_options(parser, "--config")
    parser.add_argument(
        "--devices",
        type=positive_int,
        default=1,
        metavar="N",
        help="number of devices (default: %(default)s)",
    )
    parser.add_argument(
        "--device", default="A100-80", metavar="NAME", help="kind of device (default: %(default)s)"
    )
    parser.add_argument(
        "--peak", type=positive_float, metavar="TFLOPS", help="dense peak of a device in the run's precision"
    )
    parser.add_argument("--memory", type=positive_float, metavar="GIB", help="memory of a device")
    parser.add_argument(
        "--interconnect",
        type=positive_float,
        metavar="GB/S",
        help="bandwidth at which a device sends to another",
    )
    parser.add_argument(
        "--mfu",
        type=share,
        metavar="SHARE",
        help="model FLOPs utilization: share of the peak that training reaches (default: 0.4)",
    )
    parser.add_argument(
        "--kernels",
        choices=("fused", "plain"),
        help="kernels to plan for (default: those that the configuration selects)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = build_parser()
    arguments = parser.parse_args(argv)

    def command() -> None:
        config = load_config(arguments.config, arguments.set)
        # This import loads PyTorch, which takes seconds, so the configuration is checked first.
        from elc_bert.planner.command import print_plan

        print_plan(
            config,
            device_name=arguments.device,
            devices=arguments.devices,
            peak_tflops=arguments.peak,
            memory_gib=arguments.memory,
            bandwidth=arguments.interconnect,
            mfu=arguments.mfu,
            kernels=arguments.kernels,
            json_file=arguments.json,
        )

    return run_single_process(command, parser.prog)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
