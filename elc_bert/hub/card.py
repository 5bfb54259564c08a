"""The card of an exported model: what it is, how to use it, and how it came about."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elc_bert.evaluation.run_pairs import scores_of_checkpoint
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.utils.event_files import last_scalars
from elc_bert.utils.figures import draw_layer_weights

USE = """## Use

```python
from transformers import pipeline

fill = pipeline("fill-mask", model="PATH_OR_NAME", trust_remote_code=True)
fill("The cat sat on the [MASK].")
```

`AutoModel`, `AutoModelForMaskedLM` and the classes for sequence classification, token classification,
question answering and multiple choice load it likewise, with `trust_remote_code=True`: the code of the model
lies in this folder and needs only PyTorch and transformers (4.x or 5.x).
"""


def model_card(
    model: ElcBertForMaskedLM, folder: Path, name: str, dtype: str, facts: Mapping[str, str]
) -> None:
    """Write ``README.md`` and the picture of the layer weights.

    Args:
        folder: to write to.
        name: of the model.
        dtype: of its weights.
        facts: of the run that it comes from.
    """
    config = model.config
    figure = draw_layer_weights(model.encoder.layer_weights())
    figure.savefig(folder / "layer_weights.png", dpi=110)
    rows = {
        "variant": config.variant,
        "parameters": f"{model.num_parameters():,}",
        "layers": f"{config.num_hidden_layers} of width {config.hidden_size}, {config.num_attention_heads} "
        f"heads, feed-forward {config.intermediate_size}",
        "vocabulary": f"{config.vocab_size:,} subwords",
        "weights": dtype,
        **facts,
    }
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: fill-mask",
        "tags: [elc-bert, fill-mask]",
        "---",
        "",
        f"# {name}",
        "",
        'A masked language model of the ELC-BERT family ("every layer counts"): every layer reads a learned',
        "mixture of all earlier layers' outputs.",
        "",
        USE,
        "## Facts",
        "",
        "| | |",
        "|---|---|",
        *(f"| {title} | {value} |" for title, value in rows.items()),
        "",
        "## Which layers count",
        "",
        "How much each layer (row) takes from the output of every earlier one (column):",
        "",
        "![Learned layer weights](layer_weights.png)",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def facts_of_checkpoint(checkpoint: Path) -> dict[str, str]:
    """What the files of a run say about it; nothing where they cannot be read.

    Args:
        checkpoint: its directory.
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
        facts["held-out loss"] = f"{logged['held_out/loss']:.4f} nats per masked token"
    scored = scores_of_checkpoint(checkpoint)
    for name, result in scored.items():
        pairs = sum(paradigm["pairs"] for paradigm in result["paradigms"])
        facts[name] = f"{result['overall']:.1%} of {pairs:,} minimal pairs"
    if not scored and "minimal_pairs/overall" in logged:
        facts["minimal pairs"] = f"{logged['minimal_pairs/overall']:.1%}, of a sample scored while training"
    return facts


def facts_of_run(run: Mapping[str, Any], progress: Mapping[str, Any]) -> dict[str, str]:
    """What a run's configuration and its progress say about it.

    Args:
        run: the resolved configuration, as it is saved in JSON.
        progress: ``training.metrics.Progress``, likewise.

    Raises:
        LookupError: of something else.
    """
    ours, parameters = run["elc_bert"], run["optimizer"]["params"]
    # A checkpoint from before words were counted has none.
    words = f"{progress['words_seen']:,}, repeats included" if "words_seen" in progress else "not counted"
    return {
        "steps": f"{progress['step']:,} of {ours['training']['max_steps']:,}",
        "global batch": f"{run['train_batch_size']:,} sequences of {ours['training']['sequence_length']}",
        "words seen": words,
        "tokens seen": f"{progress['tokens_seen']:,}, repeats included",
        "data": _names(ours["data"]["train"]),
        "optimizer": f"{run['optimizer']['type']}, peak rate {parameters.get('lr')}, weight decay "
        f"{parameters.get('weight_decay')}",
        "masked": f"{ours['data']['mask_probability']:.0%} of the tokens, in spans",
        "seed": str(ours["training"]["seed"]),
    }


def _names(train: Any) -> str:
    """The training datasets by the names of their files."""
    paths = [train] if isinstance(train, str) else [each["path"] for each in train]
    return ", ".join(Path(path).name for path in paths)
