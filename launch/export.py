"""Export a checkpoint to a Hugging Face folder; see ``--help``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from elc_bert.utils.errors import run_single_process
from elc_bert_launch.options import add_model_options, command_line

EXAMPLES = """examples:
  the newest checkpoint of a run:
    python launch/export.py runs/strict_small models/strict_small
  an earlier checkpoint, in bf16:
    python launch/export.py runs/strict_small/checkpoints/step-010000 models/early --dtype bf16
  a published ELC-BERT:
    python launch/export.py downloads/ELC_BERT_small models/published --variant base
  a checkpoint of the reference implementation:
    python launch/export.py model.bin models/reference --variant zero --tokenizer tokenizer.json

Load the export in Python:
  from transformers import AutoModelForMaskedLM
  model = AutoModelForMaskedLM.from_pretrained("models/strict_small", trust_remote_code=True)
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command_line(
        "Write a model as a folder that Hugging Face transformers loads: weights, code, tokenizer and model\n"
        "card.",
        EXAMPLES,
    )
    add_model_options(parser, metavar="CHECKPOINT")
    parser.add_argument("folder", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument(
        "--dtype",
        choices=("fp32", "bf16"),
        default="fp32",
        help="precision of the exported weights (default: %(default)s)",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="JSON file with the model sizes of the reference's model.bin",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace the files of an earlier export in OUT; other files there stay",
    )
    card = parser.add_argument_group("facts for the model card")
    card.add_argument("--license", metavar="ID", help="license of the model, such as mit or cc-by-4.0")
    card.add_argument("--language", nargs="+", default=[], metavar="CODE", help="its languages, such as en")
    card.add_argument(
        "--dataset",
        nargs="+",
        default=[],
        metavar="OWNER/NAME",
        help="datasets on the Hugging Face Hub that it was trained on",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = build_parser()
    arguments = parser.parse_args(argv)

    def command() -> None:
        # This import loads PyTorch, which --help should not wait for.
        from elc_bert.hub.card import CardMetadata
        from elc_bert.hub.command import export_model

        export_model(
            arguments.model,
            arguments.folder,
            dtype=arguments.dtype,
            tokenizer=arguments.tokenizer,
            variant=arguments.variant,
            config=arguments.config,
            force=arguments.force,
            metadata=CardMetadata(arguments.license, tuple(arguments.language), tuple(arguments.dataset)),
        )

    return run_single_process(command, parser.prog)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
