"""The card of an exported model: what it is, how to use it, and how it came about."""

import json
from pathlib import Path
from typing import Any

from elc_bert.evaluation.curves import last_scalars
from elc_bert.hub.loading import Loaded
from elc_bert.pictures import draw_layer_weights

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


def model_card(loaded: Loaded, folder: Path, dtype: str) -> None:
    """Write ``README.md`` and the picture of the layer weights."""
    model, config = loaded.model, loaded.model.config
    figure = draw_layer_weights(model.encoder.layer_weights())
    figure.savefig(folder / "layer_weights.png", dpi=110)
    facts = {
        "variant": config.variant,
        "parameters": f"{model.num_parameters():,}",
        "layers": f"{config.num_hidden_layers} of width {config.hidden_size}, {config.num_attention_heads} "
        f"heads, feed-forward {config.intermediate_size}",
        "vocabulary": f"{config.vocab_size:,} subwords",
        "weights": dtype,
        **_facts_of_run(loaded.checkpoint),
    }
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: fill-mask",
        "tags: [elc-bert, fill-mask]",
        "---",
        "",
        f"# {folder.name.lstrip('.').split('.')[0]}",
        "",
        'A masked language model of the ELC-BERT family ("every layer counts"): every layer reads a learned',
        "mixture of all earlier layers' outputs.",
        "",
        USE,
        "## Facts",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in facts.items()),
        "",
        "## Which layers count",
        "",
        "How much each layer (row) takes from the output of every earlier one (column):",
        "",
        "![Learned layer weights](layer_weights.png)",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def _facts_of_run(checkpoint: Path | None) -> dict[str, str]:
    """What a run's own files say about it."""
    if checkpoint is None:
        return {}
    try:
        record = json.loads((checkpoint / "run.json").read_text(encoding="utf-8"))
        run: dict[str, Any] = record["config"]
        progress = record["progress"]
        ours, step = run["elc_bert"], progress["step"]
        facts = {
            "steps": f"{step:,} of {ours['training']['max_steps']:,}",
            "global batch": f"{run['train_batch_size']:,} sequences of {ours['training']['sequence_length']}",
            "tokens seen": f"{progress['tokens_seen']:,}, repeats included",
            "data": _names(ours["data"]["train"]),
            "optimizer": f"{run['optimizer']['type']}, peak rate {run['optimizer']['params'].get('lr')}, "
            f"weight decay {run['optimizer']['params'].get('weight_decay')}",
            "masked": f"{ours['data']['mask_probability']:.0%} of the tokens, in spans",
            "seed": str(ours["training"]["seed"]),
        }
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    logged = last_scalars(checkpoint.parent.parent, up_to=step)
    if "data/words" in logged:
        facts["words seen"] = f"about {logged['data/words']:,.0f}, repeats included"
    if "held_out/loss" in logged:
        facts["held-out loss"] = f"{logged['held_out/loss']:.4f} nats per masked token"
    return facts


def _names(train: Any) -> str:
    """The training datasets by the names of their files."""
    paths = [train] if isinstance(train, str) else [each["path"] for each in train]
    return ", ".join(Path(path).name for path in paths)
