"""What a run says of itself before its first step."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from elc_bert.config.schema import RunConfig
from elc_bert.distributed.world import World
from elc_bert.engine.zero_layout import whole_numel
from elc_bert.kernels import Kernels
from elc_bert.kernels.compiled import methods_without_fast_path
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.training.callbacks.babylm_exports import MILLION, over_the_limit
from elc_bert.training.data import RunData
from elc_bert.utils.text import human, summary_table

if TYPE_CHECKING:
    from elc_bert.training.run import Run


def introduce(run: "Run", origin: Path | None, missing_kernels: str, memory: str) -> None:
    """Print what is about to happen."""
    config, data = run.config, run.data
    training = config.elc_bert.training
    total_tokens = 0
    lines = []
    positions = {}
    for phase, end in run.schedule.phases_with_ends():
        plan, steps = run.plans[phase.index], end - phase.first_step
        layout = (
            f"{plan.micro_batch} micro-batch x {plan.accumulation} accumulation x {run.world.size} devices"
        )
        per_step = phase.global_batch * phase.sequence_length
        total_tokens += steps * per_step
        positions[phase.index] = steps * phase.global_batch
        lines.append(
            (
                f"steps {phase.first_step + 1} to {end}",
                f"{phase.global_batch} sequences of {phase.sequence_length} = {layout}, "
                f"{human(per_step)} tokens a step",
            )
        )
    rows = [
        ("model", describe_model(run.engine.module)),
        ("devices", describe_devices(run.world)),
        ("precision", describe_precision(config)),
        ("memory", memory),
        ("kernels", describe_kernels(config, run.engine.module.kernels)),
        *lines,
        ("packing", _packing(config, data)),
        ("in total", f"{human(total_tokens)} tokens at most"),
        ("optimizer", describe_schedule(config)),
        *_datasets(config, data, positions),
        ("held out", f"{config.elc_bert.data.dev}, {data.held_out.sequences} sequences"),
        ("output", str(training.output_dir)),
    ]
    if run.paradigms:
        rows.append(("minimal pairs", _minimal_pairs(config, len(run.paradigms))))
    if note := over_the_limit(dict(zip(data.names, data.epochs(positions), strict=True))):
        rows.append(("BabyLM", note))
    if config.elc_bert.evaluation.babylm_checkpoints and per_step > MILLION:
        rows.append(
            ("BabyLM", "a step may read over a million words: neighbouring exports are then the same")
        )
    if missing_kernels:
        rows.append(("slower", f"LAMB without its kernels; {missing_kernels}"))
    if origin is not None:
        step = run.progress.step
        rows.append(
            ("resumed", f"after step {step}, from {origin}") if step else ("starts from", str(origin))
        )
    print(summary_table(rows), flush=True)


def _minimal_pairs(config: RunConfig, files: int) -> str:
    settings = config.elc_bert.evaluation
    limit = f"the first {settings.minimal_pairs_limit} of" if settings.minimal_pairs_limit else "all of"
    every = f"every {settings.minimal_pairs_every} steps"
    return f"{limit} each of {files} files of {settings.minimal_pairs} {every}"


def _packing(config: RunConfig, data: RunData) -> str:
    """How full the rows are."""
    if not config.elc_bert.data.pack:
        return "off, a row for each sequence"
    means = [f"{mean:.3g} sequences in a row of {length}" for length, mean in data.in_a_row.items()]
    return f"on, about {', '.join(means)}; fewer micro-batches accordingly"


def _datasets(config: RunConfig, data: RunData, positions: dict[int, int]) -> Iterator[tuple[str, str]]:
    """A line about each training dataset and what the whole run reads of it."""
    entries, shares = config.elc_bert.data.train, data.shares(positions)
    for entry, manifest, share, epochs in zip(
        entries, data.manifests, shares, data.epochs(positions), strict=True
    ):
        words = f" ({human(manifest.words)} words)" if manifest.words else ""
        size = f"{human(manifest.tokens)} tokens{words}"
        part = f"{share:.2%} of the sequences, " if len(entries) > 1 else ""
        yield "dataset", f"{entry.path}, {size}, {part}{epochs:.3g} epochs"


def describe_model(model: ElcBertForMaskedLM) -> str:
    config = model.config
    return (
        f"ELC-BERT {config.variant}, {config.num_hidden_layers} layers x {config.hidden_size}, "
        f"{human(sum(map(whole_numel, model.parameters())))} parameters"
    )


def describe_devices(world: World) -> str:
    import torch

    name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "CPU process"
    return f"{world.size} x {name}"


def describe_precision(config: RunConfig) -> str:
    where = ", optimizer in CPU memory" if config.offloads_optimizer else ""
    return f"{config.precision}, ZeRO stage {config.zero_stage}{where}"


def describe_kernels(config: RunConfig, kernels: Kernels) -> str:
    """What attention, layer mixing and the like are computed by."""
    kind = "plain definitions" if type(kernels) is Kernels else f"fused ({type(kernels).__name__})"
    if not config.elc_bert.training.compile:
        return kind
    rest = ", ".join(methods_without_fast_path(kernels)).replace("_", " ")
    return f"{kind}; torch.compile of {rest or 'nothing, since no definition is left to compile'}"


def describe_schedule(config: RunConfig) -> str:
    optimizer = config.optimizer
    return (
        f"{optimizer.type}, peak learning rate {optimizer.params.get('lr')}, {config.scheduler.type} schedule"
    )
