"""Helpers that write small runs and parse report pages."""

import json
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

DRAWINGS = "const drawings = "


def write_run(folder: Path, scalars: Mapping[str, Mapping[int, float]], **settings: Any) -> Path:
    """Write a run that has logged scalars but has no data or checkpoint.

    ``settings`` are keys of ``elc_bert.training``.
    """
    folder.mkdir(parents=True)
    training = {"output_dir": str(folder), "max_steps": 100, **settings}
    data = {"train": "gone/train", "dev": "gone/dev", "tokenizer": "gone/tokenizer.json"}
    config = {"train_batch_size": 8, "elc_bert": {"data": data, "training": training}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    log(folder / "tensorboard", scalars)
    return folder


def log(folder: Path, scalars: Mapping[str, Mapping[int, float]]) -> None:
    """Write one more event file."""
    with SummaryWriter(str(folder)) as writer:
        for name, values in scalars.items():
            for step, value in values.items():
                writer.add_scalar(name, value, step)


def write_pairs(
    run: Path, name: str, phenomena: Mapping[str, float], method: str = "within-word", limit: int | None = 20
) -> None:
    """Write results as launch/evaluate.py does, with one paradigm of 1,020 pairs per phenomenon.

    ``name`` is that of the folder, with or without a folder for the settings.
    """
    folder = run / "minimal_pairs" / name
    folder.mkdir(parents=True)
    paradigms = [
        {"name": f"{key}_1", "phenomenon": key, "accuracy": v, "pairs": 1020} for key, v in phenomena.items()
    ]
    overall = sum(phenomena.values()) / len(phenomena)
    results = {"overall": overall, "phenomena": phenomena, "paradigms": paradigms}
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    settings = {"pairs": "blimp/data", "method": method, "limit": limit}
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")


class Page(HTMLParser):
    """A parsed page: elements with their attributes, scripts, and the text outside of scripts."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.titles: list[str] = []
        """Titles of the charts."""
        self._text: list[str] = []
        self._within = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._within = tag

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within == "script":
            self.scripts.append(data)
        elif self._within != "style":
            self._text.append(data)
            if self._within == "h3":
                self.titles.append(data)

    @property
    def text(self) -> str:
        """The text, with whitespace collapsed to single spaces."""
        return " ".join(" ".join(self._text).split())

    def drawings(self) -> list[dict[str, Any]]:
        """Return the figures that are passed to plotly, in the order of the page."""
        script = self.scripts[-1]
        start = script.index(DRAWINGS) + len(DRAWINGS)
        return json.JSONDecoder().raw_decode(script, start)[0]
