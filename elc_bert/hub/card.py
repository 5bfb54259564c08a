"""Model card of an exported model: what it is, how to use it and how it was trained."""

import html
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elc_bert.config.held_out import describe_masks
from elc_bert.evaluation.pair_settings import OVERALL, PAIRS, describe, logged_pairs
from elc_bert.evaluation.saved_results import results_of_checkpoint
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.utils.event_files import last_scalars
from elc_bert.utils.figures import draw_layer_weights

USE = """## Use

```python
from transformers import pipeline

fill = pipeline("fill-mask", model="PATH_OR_NAME", trust_remote_code=True)
fill("The cat sat on the [MASK].")
```

`AutoModel`, `AutoModelForMaskedLM` and the auto classes for sequence classification, token classification,
question answering and multiple choice load it in the same way. `trust_remote_code=True` is required because
the model's code is part of this repository; it needs only PyTorch and transformers (4.40 or later).
"""
"""Section of the card that shows how to load the model."""


@dataclass(frozen=True)
class CardMetadata:
    """Facts for the header of a model card, which the Hugging Face Hub uses to list and to filter models."""

    license: str | None = None
    """Identifier of the license, such as ``mit``."""
    languages: tuple[str, ...] = ()
    """Codes of the languages, such as ``en``."""
    datasets: tuple[str, ...] = ()
    """Names of the datasets on the Hub that the model was trained on, such as ``OWNER/NAME``."""

    def lines(self) -> list[str]:
        """Return the lines of the header, in YAML. Strings in JSON are strings in YAML, too."""
        entries = {"license": self.license, "language": list(self.languages), "datasets": list(self.datasets)}
        return [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in entries.items() if value]


def model_card(
    model: ElcBertForMaskedLM,
    folder: Path,
    name: str,
    dtype: str,
    facts: Mapping[str, str],
    metadata: CardMetadata,
    mask: str = "[MASK]",
) -> None:
    """Write ``README.md`` and the figure of the layer weights.

    Args:
        model: The exported model.
        folder: Folder to write to.
        name: Name of the model, the title of the card.
        dtype: Name of the dtype of the saved weights.
        facts: Titles and values of further rows of the table, about the run that trained the model.
        metadata: Facts for the header.
        mask: Name of the mask token.
    """
    config = model.config
    figure = draw_layer_weights(model.encoder.layer_weights())
    figure.savefig(folder / "layer_weights.png", dpi=110)
    rows = {
        "variant": config.variant,
        "parameters": f"{model.num_parameters():,}",
        "layers": f"{config.num_hidden_layers}, hidden size {config.hidden_size}, "
        f"{config.num_attention_heads} attention heads, feed-forward size {config.intermediate_size}",
        "vocabulary": f"{config.vocab_size:,} subwords",
        "weights": dtype,
        **facts,
    }
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: fill-mask",
        "tags: [elc-bert, fill-mask]",
        *metadata.lines(),
        "---",
        "",
        f"# {escape(name)}",
        "",
        'A masked language model of the ELC-BERT family ("every layer counts"): the input of each layer is a',
        "learned, softmax-weighted sum of the outputs of all earlier layers.",
        "",
        USE.replace("[MASK]", mask),
        "## Details",
        "",
        "| | |",
        "|---|---|",
        *(f"| {escape(title)} | {escape(value)} |" for title, value in rows.items()),
        "",
        "## Layer weights",
        "",
        "Weight of each earlier layer's output (column) in the input of each layer (row):",
        "",
        "![Learned layer weights](layer_weights.png)",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def escape(text: str) -> str:
    """Return text that Markdown shows as it is, in a cell of a table as well."""
    text = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", text)


def facts_of_checkpoint(checkpoint: Path) -> dict[str, str]:
    """Return the facts that the files of a run contain about a checkpoint; empty if they cannot be read.

    Args:
        checkpoint: Directory of the checkpoint.
    """
    try:
        record = json.loads((checkpoint / "run.json").read_text(encoding="utf-8"))
        facts = facts_of_run(record["config"], record["progress"])
        step = int(record["progress"]["step"])
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    run = checkpoint.parent.parent
    logged = last_scalars(run, up_to=step)
    if "held_out/loss" in logged:
        masks = describe_masks(record["config"])
        facts["held-out loss"] = f"{logged['held_out/loss']:.4f} nats per masked token ({masks})"
    results = results_of_checkpoint(checkpoint)
    for scores in results:
        facts[scores.label] = f"{scores.overall:.1%} accuracy on minimal pairs ({scores.how})"
    if not results:
        evaluation = record["config"]["elc_bert"].get("evaluation")
        for settings, values in logged_pairs(logged, evaluation).items():
            how = describe(settings, int(values[PAIRS][-1]) if PAIRS in values else None)
            facts[f"minimal pairs, {settings.name}"] = (
                f"{values[OVERALL][-1]:.1%} accuracy, scored during training ({how})"
            )
    return facts


def facts_of_run(run: Mapping[str, Any], progress: Mapping[str, Any]) -> dict[str, str]:
    """Return the facts that a run's configuration and progress contain about it.

    Args:
        run: The resolved configuration, as in the run's ``config.json``.
        progress: The run's progress (steps, tokens, words), as in the checkpoint's ``run.json``.

    Raises:
        LookupError: One of the two is something else, or another version of this project has written it.
    """
    settings, parameters = run["elc_bert"], run["optimizer"]["params"]
    # Checkpoints of early versions do not count words.
    words = (
        f"{progress['words_seen']:,}, including repetitions" if "words_seen" in progress else "not counted"
    )
    return {
        "steps": f"{progress['step']:,} of {settings['training']['max_steps']:,}",
        "global batch": f"{run['train_batch_size']:,} sequences of {settings['training']['sequence_length']}",
        "words seen": words,
        "tokens seen": f"{progress['tokens_seen']:,}, including repetitions",
        "data": _dataset_names(settings["data"]["train"]),
        "optimizer": f"{run['optimizer']['type']}, peak learning rate {parameters.get('lr')}, weight decay "
        f"{parameters.get('weight_decay')}",
        "masked": f"{settings['data']['mask_probability']:.0%} of the tokens, in spans",
        "seed": str(settings["training"]["seed"]),
    }


def _dataset_names(train: Any) -> str:
    """Return the file names of the training datasets."""
    paths = [train] if isinstance(train, str) else [each["path"] for each in train]
    return ", ".join(Path(path).name for path in paths)
