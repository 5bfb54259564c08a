"""Pretrains from several configurations, one after the other, in one launch."""

import argparse
import sys
from pathlib import Path

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
        help="run after the others, with a LAMB that takes what ZeRO hands it for whole tensors",
    )
    parser.add_argument("--fp16-on-cpu", action="store_true", help="slow, but torch can do it")
    parser.add_argument("--local_rank", help="given by the deepspeed launcher")
    arguments = parser.parse_args(argv)

    def command(watchdog) -> None:
        if arguments.fp16_on_cpu:
            allow_fp16()
        for path in arguments.configs:
            pretrain(load_config(path), watchdog, arguments.resume)
        engine.shard_lamb = lambda lamb, engine: None
        for path in arguments.plain_lamb:
            pretrain(load_config(path), watchdog, arguments.resume)

    run_command(command)


def allow_fp16() -> None:
    """DeepSpeed asks whether the CPU has instructions for fp16; torch does without them, slowly."""
    from deepspeed.accelerator import get_accelerator

    type(get_accelerator()).is_fp16_supported = lambda self: True


if __name__ == "__main__":
    main(sys.argv[1:])
