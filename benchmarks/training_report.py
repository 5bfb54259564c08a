"""Results of benchmarks/train.py as a table and as a picture."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training_step import REST, Memory

from elc_bert.utils.files import atomic_write

COLORS = {
    "data": "#999999",
    "embedding": "#56b4e9",
    "layer mixing": "#009e73",
    "attention": "#0072b2",
    "feed-forward": "#d55e00",
    "head + loss": "#cc79a7",
    "optimizer": "#e69f00",
    REST: "#cccccc",
}
"""Colors of the parts of a step, in the order in which they are shown."""


@dataclass(frozen=True)
class Speed:
    """Speed of a training step, as medians."""

    seconds: float
    real_tokens: float
    """Real tokens per step."""
    all_tokens: float
    """Tokens per step, including padding."""
    mfu: float
    part_seconds: dict[str, float]


@dataclass(frozen=True)
class Report:
    """Results of the benchmark."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    peak_flops: float
    peak_of: str
    burst_flops: float
    """Operations per second of the fastest single product."""
    product_flops: dict[str, float]
    """Sustained operations per second of each matrix product."""
    speed: dict[str, Speed]
    memory: dict[str, Memory]
    """Memory by candidate; ``activations`` excludes the optimizer step."""

    def lines(self) -> list[str]:
        """Return the lines of the report."""
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        lines = [", ".join(f"{name} {value}" for name, value in self.machine.items()), settings]
        if self.speed:
            peak = f"peak: {self.peak_flops / 1e9:,.1f} GFLOP/s, {self.peak_of}"
            burst = f"fastest single product: {self.burst_flops / 1e9:,.1f} GFLOP/s"
            lines += ["", f"{peak} ({burst})", *self._speeds()]
        lines += ["", f"{'GiB':24}{'peak memory':>14}{'peak activations':>18}"]
        lines += [
            f"{name:24}{memory.peak / 2**30:14.3f}{memory.activations / 2**30:18.3f}"
            for name, memory in self.memory.items()
        ]
        return lines + self._ratios()

    def _speeds(self) -> list[str]:
        lines = [
            f"{'':24}{'ms per step':>14}{'real tokens/s':>15}{'all tokens/s':>14}{'MFU':>8}",
            *(
                f"{name:24}{s.seconds * 1e3:14,.1f}{s.real_tokens / s.seconds:15,.0f}"
                f"{s.all_tokens / s.seconds:14,.0f}{s.mfu:8.3f}"
                for name, s in self.speed.items()
            ),
            "",
            f"{'ms':24}" + "".join(f"{part:>14}" for part in COLORS),
        ]
        return lines + [
            f"{name:24}" + "".join(f"{s.part_seconds[part] * 1e3:14,.1f}" for part in COLORS)
            for name, s in self.speed.items()
        ]

    def _ratios(self) -> list[str]:
        *others, last = self.memory
        lines = []
        for name in others:
            ratio = self.memory[name].activations / max(1, self.memory[last].activations)
            said = [f"peak activation memory {ratio:.2f} x"]
            if self.speed:
                one, base = self.speed[name], self.speed[last]
                rate = (one.real_tokens / one.seconds) / (base.real_tokens / base.seconds)
                said = [f"real tokens/s {rate:.2f} x", f"time {one.seconds / base.seconds:.2f} x", *said]
            lines.append(f"{name} against {last}: {', '.join(said)}")
        if self.speed and {", packed", ", padded"} <= {name[-8:] for name in self.speed}:
            padded = self.speed[next(name for name in self.speed if name.endswith("padded"))]
            share = padded.real_tokens / padded.all_tokens
            lines.append(f"{share:.1%} of the padded tokens are real, so packing can gain {1 / share:.2f} x")
        return ["", *lines] if lines else []


def draw(report: Report, path: Path) -> None:
    """Draw a stacked bar per candidate: time per real token, by part of the step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 1.9 + 0.5 * len(report.speed)), layout="constrained", facecolor="white")
    axes = figure.subplots()
    left = [0.0] * len(report.speed)
    for part, colour in COLORS.items():
        widths = [1e6 * s.part_seconds[part] / s.real_tokens for s in report.speed.values()]
        axes.barh(list(report.speed), widths, left=left, color=colour, label=part, height=0.6)
        left = [begin + width for begin, width in zip(left, widths, strict=True)]
    for row, (end, s) in enumerate(zip(left, report.speed.values(), strict=True)):
        axes.text(end, row, f" MFU {s.mfu:.2f}", va="center", fontsize="small")
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("microseconds per real token")
    axes.set_title(
        "{size}, {length} tokens, micro-batch {batch}, {precision}".format(**report.settings),
        fontsize="medium",
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(COLORS), fontsize="small", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=90)
