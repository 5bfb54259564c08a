"""The page as rendered by a browser."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from elc_bert.report.command import report
from tests.report.making import write_pairs, write_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH to open the page with")
# A script that measures the page and sends the results to the page that frames it.
PROBE = """<script>addEventListener("load", () => setTimeout(() => parent.postMessage(JSON.stringify({
  window: innerWidth, document: document.documentElement.scrollWidth,
  columns: new Set([...document.querySelectorAll(".charts .card")].map(e => e.offsetLeft)).size,
  charts: document.querySelectorAll(".charts .card").length,
  drawn: [...document.querySelectorAll(".drawing")].filter(
    e => e.querySelector(".main-svg :is(.trace, .bars, .hm)")).length,
  excess: Math.max(...[...document.querySelectorAll(".drawing")].map(e => e.scrollWidth - e.clientWidth)),
  text: getComputedStyle(document.querySelector(".drawing .xtick text")).fill,
  page: getComputedStyle(document.body).backgroundColor,
  refused: window.refused}), "*"), 500));
window.refused = [];
addEventListener("securitypolicyviolation", e => window.refused.push(e.violatedDirective + e.blockedURI));
</script>"""


@dataclass(frozen=True)
class Seen:
    """The page as rendered with one width and theme."""

    facts: dict
    picture: bytes


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """A report about two runs with long names that have logged many scalars."""
    folder = tmp_path_factory.mktemp("runs")
    scalars = {
        name: {step: 1.0 + 1 / step for step in range(1, 200)}
        for name in ("train/loss", "held_out/loss", "train/accuracy", "throughput/tokens_per_second")
    }
    scalars |= {
        f"layer_weights/layer_{layer:02d}_from_{source:02d}": dict.fromkeys((1, 100, 200), 1 / layer)
        for layer in range(1, 13)
        for source in range(layer)
    }
    runs = [write_run(folder / f"{name}_with_a_name_that_is_really_rather_long", scalars) for name in "ab"]
    for run in runs:
        write_pairs(run, "blimp-step-000100", {"determiner_noun_agreement": 0.6, "island_effects": 0.4})
    report(runs, folder / "report.html")
    return folder / "report.html"


def look(page: Path, folder: Path, width: int, dark: bool) -> Seen:
    """Open the page in a frame of this width, because a window cannot be narrower than 500 pixels."""
    probed, frame, picture = (folder / name for name in ("probed.html", "frame.html", "picture.png"))
    probed.write_text(page.read_text(encoding="utf-8").replace("<main>", f"{PROBE}<main>"), encoding="utf-8")
    frame.write_text(
        '<!DOCTYPE html><meta name="color-scheme" content="light dark"><body style="margin:0">'
        f'<iframe src="{probed.as_uri()}" style="border:0;width:{width}px;height:1200px"></iframe><p></p>'
        '<script>onmessage = e => document.querySelector("p").textContent = e.data</script>',
        encoding="utf-8",
    )
    command = [
        str(CHROMIUM),
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={folder / 'profile'}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        f"--window-size={max(500, width)},1200",
        "--virtual-time-budget=10000",
    ]

    def run(*options: str) -> str:
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = re.search(r"<p>(\{.*\})</p>", run("--dump-dom", frame.as_uri()))
    assert said is not None, "the page never loaded"
    run(f"--screenshot={picture}", frame.as_uri())
    return Seen(json.loads(html.unescape(said[1])), picture.read_bytes())


@pytest.mark.parametrize(("width", "columns"), [(1440, 2), (400, 1)])
def test_charts_are_drawn_and_fit_the_window(width, columns, page, tmp_path):
    seen = look(page, tmp_path, width, dark=False)
    assert seen.facts["window"] == width
    assert seen.facts["document"] <= width, "the page must not scroll sideways"
    assert seen.facts["excess"] <= 0, "a chart is wider than its card"
    assert seen.facts["columns"] == columns
    assert seen.facts["drawn"] == seen.facts["charts"] > 5
    assert seen.facts["refused"] == [], "the page must not request anything that its policy forbids"


def test_light_and_dark_themes_follow_the_browser(page, tmp_path):
    pictures = []
    for dark in (False, True):
        folder = tmp_path / str(dark)
        folder.mkdir()
        seen = look(page, folder, 900, dark)
        text, background = (brightness(seen.facts[name]) for name in ("text", "page"))
        assert (text > background) == dark
        assert abs(text - background) > 90, "the labels of the axes must contrast with the background"
        pictures.append(seen.picture)
    assert pictures[0] != pictures[1]


def brightness(color: str) -> float:
    """Return the mean of the channels of ``rgb(...)``, 0 to 255."""
    channels = re.findall(r"\d+", color)[:3]
    return sum(map(int, channels)) / 3
