"""Pretrain ELC-BERT from one JSON file; see ``--help``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from elc_bert.config.reader import load_config
from elc_bert.distributed.watchdog.watchdog import Watchdog
from elc_bert.engine.processes import run_command
from elc_bert.utils.logs import LEVELS
from elc_bert.utils.options import host_and_port, named, positive_float, positive_int, process_count
from elc_bert_launch.options import add_config_options, add_local_rank, command_line

EXAMPLES = """examples:
  one process:
    python launch/pretrain.py --deepspeed_config ds_configs/demo.json
  all GPUs of this host:
    deepspeed launch/pretrain.py --deepspeed_config ds_configs/strict_small.json
  several hosts, listed in the file "hosts":
    deepspeed --hostfile hosts launch/pretrain.py --deepspeed_config ds_configs/strict.json
  other launchers:
    torchrun --nproc-per-node 2 launch/pretrain.py --deepspeed_config ds_configs/demo.json
    mpirun -n 2 python launch/pretrain.py --deepspeed_config ds_configs/demo.json
    sbatch launch/slurm/nvidia.sbatch --deepspeed_config ds_configs/strict.json
  override keys of the configuration:
    python launch/pretrain.py --deepspeed_config ds_configs/demo.json \\
        --set elc_bert.model.variant=base --set elc_bert.training.output_dir=runs/base
  resume an interrupted run:    add --resume auto to the command that started it
  find the largest micro-batch: add --find-micro-batch to the command

exit status: 0 done; 1 error, explained in one line; 75 stopped by a signal, with a checkpoint of the last
step; 76 a rank was lost or hung.
"""


@named("number of hosts, MIN or MIN:MAX,")
def host_range(text: str) -> tuple[int, int]:
    """Return the smallest and the largest number of hosts from ``MIN`` or ``MIN:MAX``."""
    least, _, most = text.partition(":")
    hosts = positive_int(least), positive_int(most or least)
    if hosts[0] > hosts[1]:
        raise argparse.ArgumentTypeError(f"{text}: MIN is larger than MAX")
    return hosts


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_line("Pretrain ELC-BERT on all processes that the launcher started.", EXAMPLES)
    add_config_options(parser)
    parser.add_argument(
        "--resume",
        default="never",
        metavar="auto|never|DIR",
        help="auto: resume from this run's newest checkpoint, or start it if there is none; DIR: resume from "
        "this checkpoint; never: start a new run (default)",
    )
    parser.add_argument(
        "--init-from",
        type=Path,
        metavar="MODEL",
        help="start a new run from the weights of a run, a checkpoint, an export, a published ELC-BERT or a "
        "model.bin of the reference implementation; ignored when a run is resumed",
    )
    parser.add_argument(
        "--find-micro-batch",
        action="store_true",
        help="do not train, but find the largest micro-batch that fits by trying, and print it",
    )
    parser.add_argument(
        "--memory-limit",
        type=positive_float,
        metavar="GIB",
        help="memory per device for --find-micro-batch (default: 95 %% of what is free)",
    )
    parser.add_argument(
        "--log-level",
        choices=LEVELS,
        default="info",
        help="least severe messages to show (default: %(default)s)",
    )
    supervised = parser.add_argument_group(
        "automatic restarts",
        "Start the processes of this host, and restart them from the newest checkpoint after a crash, on\n"
        "the hosts that remain. Run the same command on every host.",
    )
    supervised.add_argument(
        "--supervise",
        type=host_range,
        metavar="MIN[:MAX]",
        help="number of hosts; training continues while at least MIN remain",
    )
    supervised.add_argument(
        "--rdzv-endpoint",
        type=host_and_port,
        metavar="HOST:PORT",
        help="one of the hosts, which must stay up, and a free port on it, through which the hosts connect",
    )
    supervised.add_argument(
        "--nproc-per-node",
        type=process_count,
        metavar="N",
        help="processes per host (default: its number of GPUs, or 1)",
    )
    supervised.add_argument(
        "--max-restarts",
        type=positive_int,
        default=3,
        metavar="N",
        help="restarts after crashes on this host (default: %(default)s)",
    )
    add_local_rank(parser)
    arguments = parser.parse_args(argv)
    if arguments.supervise:
        if arguments.find_micro_batch or arguments.resume not in ("never", "auto"):
            parser.error(
                "--supervise: implies --resume auto; use it without --find-micro-batch and --resume DIR"
            )
        if arguments.supervise[1] > 1 and arguments.rdzv_endpoint is None:
            parser.error("--supervise: several hosts need --rdzv-endpoint HOST:PORT")
    return arguments


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command and end the process with its exit status."""
    arguments = parse_arguments(argv)

    def command(watchdog: Watchdog) -> int | None:
        config = load_config(arguments.config, arguments.set)
        # These imports load DeepSpeed, which takes seconds, so the configuration is checked first.
        if arguments.find_micro_batch:
            from elc_bert.training.find_micro_batch import find_micro_batch

            find_micro_batch(config, watchdog, arguments.memory_limit)
            return None
        if arguments.supervise:
            from elc_bert.training.supervise import Hosts, supervise

            minimum, maximum = arguments.supervise
            hosts = Hosts(minimum, maximum, arguments.rdzv_endpoint, arguments.nproc_per_node)
            return supervise(config, hosts, arguments.max_restarts, arguments.init_from, arguments.log_level)
        from elc_bert.training.pretrain import pretrain

        return pretrain(config, watchdog, arguments.resume, arguments.init_from, arguments.log_level)

    run_command(command)


if __name__ == "__main__":
    main(sys.argv[1:])
