"""From a checkpoint to a Hugging Face folder; see ``--help``."""

import argparse
import sys
from pathlib import Path

from elc_bert.utils.errors import UserError, run_single_process

EXAMPLES = """examples:
  newest checkpoint of a run:
    python launch/export.py runs/strict_small models/strict_small
  an earlier one, in bf16:
    python launch/export.py runs/strict_small/checkpoints/step-010000 models/early --dtype bf16
  a published ELC-BERT:
    python launch/export.py downloads/ELC_BERT_small models/published --variant base
  a checkpoint of the reference implementation:
    python launch/export.py model.bin models/reference --variant zero --tokenizer tokenizer.json

Then:
  from transformers import AutoModelForMaskedLM
  model = AutoModelForMaskedLM.from_pretrained("models/strict_small", trust_remote_code=True)
"""


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="export.py",
        description="Write a model as a folder that Hugging Face transformers loads: weights, code, "
        "tokenizer and card.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = parser.add_argument
    option(
        "model",
        type=Path,
        metavar="CHECKPOINT",
        help="a run, one of its checkpoints, an export, a published ELC-BERT, or the reference's model.bin",
    )
    option("folder", type=Path, metavar="OUT", help="the folder to write")
    option("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the weights (default: fp32)")
    option("--tokenizer", type=Path, metavar="FILE", help="tokenizer.json (default: the model's own)")
    option(
        "--variant",
        choices=("base", "zero", "normalized", "weighted_output"),
        help="of a model of the reference's, whose tensors do not always tell",
    )
    option("--config", type=Path, metavar="FILE", help="sizes of the reference's model.bin, in JSON")
    option("--force", action="store_true", help="replace an earlier export")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> None:
    # These load PyTorch; --help should not wait for it.
    from elc_bert.hub.export import check_target, export
    from elc_bert.hub.loading import load_model

    check_target(arguments.folder, arguments.force)
    loaded = load_model(arguments.model, arguments.variant, arguments.config)
    tokenizer = arguments.tokenizer or loaded.tokenizer
    if tokenizer is None:
        raise UserError(f"{arguments.model}: no tokenizer lies there; name its file by --tokenizer")
    export(loaded, tokenizer, arguments.folder, arguments.dtype, arguments.force)
    size = f"{loaded.model.num_parameters():,} parameters"
    print(f"{arguments.folder}: {loaded.model.config.variant}, {size}, {arguments.dtype}")


if __name__ == "__main__":
    options = parse_arguments(sys.argv[1:])
    sys.exit(run_single_process(lambda: run(options), "export.py"))
