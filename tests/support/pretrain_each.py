"""Pretrain from several configurations, one after the other, in one launch."""

import argparse
import sys
from pathlib import Path

from elc_bert.checkpoint import manager
from elc_bert.config.reader import load_config
from elc_bert.engine import build as engine
from elc_bert.engine.processes import run_command
from elc_bert.training.pretrain import pretrain


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("configs", nargs="*", type=Path)
    parser.add_argument("--resume", default="never")
    parser.add_argument(
        "--plain-lamb",
        nargs="+",
        default=[],
        type=Path,
        metavar="CONFIG",
        help="runs to do last, with a plain LAMB that takes the partitions of ZeRO for whole tensors",
    )
    parser.add_argument("--fp16-on-cpu", action="store_true", help="allow fp16 on a CPU, where it is slow")
    parser.add_argument("--local_rank", help="set by the deepspeed launcher")
    arguments = parser.parse_args(argv)

    def command(watchdog) -> None:
        if arguments.fp16_on_cpu:
            allow_fp16()
        for path in arguments.configs:
            pretrain(load_config(path), watchdog, arguments.resume)
        engine.shard_lamb = lambda lamb, engine: None
        manager.check_finite = lambda engine, world, final: None  # plain LAMB may end with NaN
        for path in arguments.plain_lamb:
            pretrain(load_config(path), watchdog, arguments.resume)

    run_command(command)


def allow_fp16() -> None:
    """Make DeepSpeed accept fp16 on any CPU. PyTorch needs no fp16 instructions, but is slow without."""
    from deepspeed.accelerator import get_accelerator

    type(get_accelerator()).is_fp16_supported = lambda self: True


if __name__ == "__main__":
    main(sys.argv[1:])
