"""Pretrain ELC-BERT from one JSON file; see ``--help``."""

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from elc_bert.config_file import load_config
from elc_bert.training.distributed import run_command

EXAMPLES = """examples:
  one process:       python launch/pretrain.py --deepspeed_config ds_configs/demo.json
  all GPUs here:     deepspeed launch/pretrain.py --deepspeed_config ds_configs/strict_small.json
  several nodes:     deepspeed --hostfile hosts launch/pretrain.py --deepspeed_config ds_configs/strict.json
  torchrun and MPI:  torchrun --nproc-per-node 2 launch/pretrain.py ...
                     mpirun -n 2 python launch/pretrain.py ...
  change one thing:  ... --set elc_bert.model.variant=base --set elc_bert.training.output_dir=runs/base
  go on after a stop: the same command with --resume auto
  what fits?         the same command with --find-micro-batch
"""


def positive(text: str) -> float:
    if not (number := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


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
    # The deepspeed launcher passes it; the rank is read from the environment.
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str]) -> NoReturn:
    arguments = parse_arguments(argv)

    def command() -> int | None:
        config = load_config(arguments.deepspeed_config, arguments.set)
        # After the cheap checks: these load DeepSpeed.
        if arguments.find_micro_batch:
            from elc_bert.training.find_micro_batch import find_micro_batch

            return find_micro_batch(config, arguments.memory_limit)
        from elc_bert.training.loop import pretrain

        return pretrain(config, arguments.resume, arguments.init_from)

    run_command(command)


if __name__ == "__main__":
    main(sys.argv[1:])
