"""Pretrain ELC-BERT from one JSON file; see ``--help``."""

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from elc_bert.config.reader import load_config
from elc_bert.distributed.watchdog.watchdog import Watchdog
from elc_bert.engine.processes import run_command

EXAMPLES = """examples:
  one process:       python launch/pretrain.py --deepspeed_config ds_configs/demo.json
  all GPUs here:     deepspeed launch/pretrain.py --deepspeed_config ds_configs/strict_small.json
  several nodes:     deepspeed --hostfile hosts launch/pretrain.py --deepspeed_config ds_configs/strict.json
  torchrun and MPI:  torchrun --nproc-per-node 2 launch/pretrain.py ...
                     mpirun -n 2 python launch/pretrain.py ...
  Slurm:             sbatch launch/slurm/nvidia.sbatch --deepspeed_config ds_configs/strict.json
  with restarts:     python launch/pretrain.py --supervise 2:4 --rdzv-endpoint node1:29400 ...  (on each host)
  change one thing:  ... --set elc_bert.model.variant=base --set elc_bert.training.output_dir=runs/base
  go on after a stop: the same command with --resume auto
  what fits?         the same command with --find-micro-batch
"""


def positive(text: str) -> float:
    if not (number := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


def natural(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def hosts(text: str) -> tuple[int, int]:
    least, _, most = text.partition(":")
    pair = natural(least), natural(most or least)
    if pair[0] > pair[1]:
        raise argparse.ArgumentTypeError(f"{text}: MIN is more than MAX")
    return pair


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="pretrain.py",
        description="Pretrain ELC-BERT on the processes that the launcher started.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--deepspeed_config", type=Path, required=True, metavar="FILE", help="the run, in JSON"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one key of the file, as in elc_bert.training.max_steps=200; may be repeated",
    )
    parser.add_argument(
        "--resume",
        default="never",
        metavar="auto|never|DIR",
        help="auto: go on from this run's newest checkpoint, if there is one; DIR: from that checkpoint",
    )
    parser.add_argument(
        "--init-from",
        type=Path,
        metavar="MODEL",
        help="a new run starts from the weights of this run, checkpoint, export, published ELC-BERT or "
        "model.bin of the reference; a resumed one takes no notice",
    )
    parser.add_argument(
        "--find-micro-batch",
        action="store_true",
        help="do not train: find the largest micro-batch that fits, by trying, and print it",
    )
    parser.add_argument(
        "--memory-limit",
        type=positive,
        metavar="GIB",
        help="memory per device for --find-micro-batch (default: 95 %% of what is free)",
    )
    supervised = parser.add_argument_group(
        "with restarts",
        "Start the processes of this host, and start them again from the newest checkpoint after a crash, on "
        "the hosts that are left. Run the same command on every host.",
    )
    supervised.add_argument(
        "--supervise", type=hosts, metavar="MIN[:MAX]", help="number of hosts; goes on while MIN are left"
    )
    supervised.add_argument(
        "--rdzv-endpoint",
        metavar="HOST:PORT",
        help="where several hosts meet: one of them, which must not get lost, and a free port of it",
    )
    supervised.add_argument(
        "--nproc-per-node", type=natural, metavar="N", help="processes per host (default: its GPUs, or 1)"
    )
    supervised.add_argument(
        "--max-restarts",
        type=natural,
        default=3,
        metavar="N",
        help="restarts after crashes here (default: 3)",
    )
    # The deepspeed launcher passes it; the rank is read from the environment.
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.supervise:
        if arguments.find_micro_batch or arguments.resume not in ("never", "auto"):
            parser.error("--supervise goes with neither --find-micro-batch nor --resume DIR: it means auto")
        if arguments.supervise[1] > 1 and arguments.rdzv_endpoint is None:
            parser.error("--supervise: several hosts need --rdzv-endpoint HOST:PORT")
    return arguments


def main(argv: list[str]) -> NoReturn:
    arguments = parse_arguments(argv)

    def command(watchdog: Watchdog) -> int | None:
        config = load_config(arguments.deepspeed_config, arguments.set)
        # After the cheap checks: these load DeepSpeed.
        if arguments.find_micro_batch:
            from elc_bert.training.find_micro_batch import find_micro_batch

            return find_micro_batch(config, watchdog, arguments.memory_limit)
        if arguments.supervise:
            from elc_bert.training.supervise import Hosts, supervise

            meeting = Hosts(*arguments.supervise, arguments.rdzv_endpoint, arguments.nproc_per_node)
            return supervise(config, meeting, arguments.max_restarts, arguments.init_from)
        from elc_bert.training.pretrain import pretrain

        return pretrain(config, watchdog, arguments.resume, arguments.init_from)

    run_command(command)


if __name__ == "__main__":
    main(sys.argv[1:])
