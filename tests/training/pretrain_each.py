"""Pretrains from several configurations, one after the other, in one launch."""

import argparse
import sys
from pathlib import Path

from elc_bert.config_file import load_config
from elc_bert.training.distributed import run_command
from elc_bert.training.loop import pretrain


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("configs", nargs="+", type=Path)
    parser.add_argument("--resume", default="never")
    parser.add_argument("--local_rank", help="given by the deepspeed launcher")
    arguments = parser.parse_args(argv)

    def command() -> None:
        for path in arguments.configs:
            pretrain(load_config(path), arguments.resume)

    run_command(command)


if __name__ == "__main__":
    main(sys.argv[1:])
