"""Table about a run that is printed before its first step."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from elc_bert.config.held_out import HeldOutSettings
from elc_bert.config.schema import RunConfig
from elc_bert.data.format.coverage import unread_share, unread_warning
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.manifest import SegmentsEntry
from elc_bert.data.format.segments import with_unread
from elc_bert.distributed.world import World
from elc_bert.engine.weights import full_numel
from elc_bert.evaluation.minimal_pairs import Paradigm
from elc_bert.evaluation.pair_settings import PairSettings, describe
from elc_bert.kernels import Kernels
from elc_bert.kernels.compiled import methods_without_fast_path
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.training.callbacks.babylm_exports import MILLION, epochs_warning
from elc_bert.training.data import RunData
from elc_bert.training.run import Run
from elc_bert.utils.text import human, summary_table

logger = logging.getLogger(__name__)


def report_start(run: Run, origin: Path | None, plain_lamb: str, memory: str) -> None:
    """Log the table.

    Args:
        run: Run that is ready for its next step.
        origin: Checkpoint that it resumes, or model whose weights it starts from.
        plain_lamb: Reason why LAMB falls back to plain PyTorch; empty if it does not.
        memory: Line about memory from ``check_memory``.
    """
    config, data = run.config, run.data
    positions = {
        phase.index: (end - phase.first_step) * phase.global_batch
        for phase, end in run.schedule.phases_with_ends()
    }
    tokens = sum(
        positions[phase.index] * phase.sequence_length for phase, _ in run.schedule.phases_with_ends()
    )
    rows = [
        ("model", describe_model(run.engine.module)),
        ("devices", describe_devices(run.world)),
        ("precision", describe_precision(config)),
        ("memory", memory),
        ("kernels", describe_kernels(config, run.engine.module.kernels)),
        *describe_phases(run),
        ("packing", describe_packing(config, data)),
        ("in total", f"{human(tokens)} tokens at most"),
        ("optimizer", describe_optimizer(config)),
        *describe_datasets(config, data, positions),
        ("held out", f"{config.elc_bert.data.dev}, {data.held_out.sequences} sequences"),
        ("", HeldOutSettings.of_run(config).describe()),
        ("output", str(config.elc_bert.training.output_dir)),
    ]
    if run.paradigms:
        rows.append(("minimal pairs", describe_minimal_pairs(config, run.paradigms)))
    rows += [("BabyLM", note) for note in babylm_notes(run, positions)]
    if plain_lamb:
        rows.append(("slower", f"LAMB without its fused kernels; {plain_lamb}"))
    if origin is not None:
        step = run.progress.step
        rows.append(
            ("resumed", f"after step {step}, from {origin}") if step else ("starts from", str(origin))
        )
    logger.info("%s", summary_table(rows))
    for warning in unread_warnings(config, data):
        logger.warning("%s", warning)


def describe_model(model: ElcBertForMaskedLM) -> str:
    """Return variant, shape and number of parameters."""
    config = model.config
    return (
        f"ELC-BERT {config.variant}, {config.num_hidden_layers} layers x {config.hidden_size}, "
        f"{human(sum(map(full_numel, model.parameters())))} parameters"
    )


def describe_devices(world: World) -> str:
    """Return number and name of the devices."""
    name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "CPU process"
    return f"{world.size} x {name}"


def describe_precision(config: RunConfig) -> str:
    """Return precision, ZeRO stage and offload."""
    where = ", optimizer in CPU memory" if config.offloads_optimizer else ""
    return f"{config.precision}, ZeRO stage {config.zero_stage}{where}"


def describe_kernels(config: RunConfig, kernels: Kernels | str) -> str:
    """Return the kind of kernels for attention, layer mixing and so on, and what torch.compile compiles."""
    assert isinstance(kernels, Kernels)
    kind = "plain definitions" if type(kernels) is Kernels else f"fused ({type(kernels).__name__})"
    if not config.elc_bert.training.compile:
        return kind
    rest = ", ".join(methods_without_fast_path(kernels)).replace("_", " ")
    return f"{kind}; torch.compile of {rest or 'nothing, since all kernels are fused'}"


def describe_phases(run: Run) -> Iterator[tuple[str, str]]:
    """Yield a row about each phase of constant sequence length."""
    for phase, end in run.schedule.phases_with_ends():
        plan = run.plans[phase.index]
        yield (
            f"steps {phase.first_step + 1} to {end}",
            f"{phase.global_batch} sequences of {phase.sequence_length} = {plan.micro_batch} micro-batch x "
            f"{plan.accumulation} accumulation x {run.world.size} devices, "
            f"{human(phase.global_batch * phase.sequence_length)} tokens a step",
        )


def describe_packing(config: RunConfig, data: RunData) -> str:
    """Return whether samples are packed, and how many fit into a row."""
    if not config.elc_bert.data.pack:
        return "off, one sequence per row"
    means = [f"{mean:.3g} sequences in a row of {length}" for length, mean in data.sequences_per_row.items()]
    return f"on, about {', '.join(means)}; fewer micro-batches accordingly"


def describe_optimizer(config: RunConfig) -> str:
    """Return optimizer, peak learning rate and schedule."""
    optimizer = config.optimizer
    return (
        f"{optimizer.type}, peak learning rate {config.peak_learning_rate}, {config.scheduler.type} schedule"
    )


def describe_datasets(
    config: RunConfig, data: RunData, positions: dict[int, int]
) -> Iterator[tuple[str, str]]:
    """Yield a row about each training dataset and what the whole run reads of it."""
    entries, shares = config.elc_bert.data.train, data.shares(positions)
    for entry, manifest, share, epochs in zip(
        entries, data.manifests, shares, data.epochs(positions), strict=True
    ):
        words = f" ({human(manifest.words)} words)" if manifest.words else ""
        size = f"{human(manifest.tokens)} tokens{words}"
        part = f"{share:.2%} of the sequences, " if len(entries) > 1 else ""
        yield "dataset", f"{entry.path}, {size}, {part}{epochs:.3g} epochs"
        unread = [
            f"{unread_share(each, manifest.tokens):.2%} in no sequence of {each.sequence_length}"
            for each in segments_read(config, entry.path, data)
        ]
        yield "never read", f"of its tokens, {', '.join(unread)}"


def segments_read(config: RunConfig, path: Path, data: RunData) -> list[SegmentsEntry]:
    """Return the manifest entries of the segments of a training dataset that a run reads."""
    dataset, policy = IndexedDataset(path), config.elc_bert.data.segments
    found = (dataset.manifest.find_segments(length, policy) for length in data.sequences_per_row)
    return [with_unread(dataset, entry) for entry in found if entry is not None]


def unread_warnings(config: RunConfig, data: RunData) -> Iterator[str]:
    """Yield a warning for each training dataset and sequence length at which much text is never read."""
    for entry, manifest in zip(config.elc_bert.data.train, data.manifests, strict=True):
        for segments in segments_read(config, entry.path, data):
            if warning := unread_warning(entry.path, segments, manifest.tokens):
                yield warning


def describe_minimal_pairs(config: RunConfig, paradigms: Sequence[Paradigm]) -> str:
    """Return which minimal pairs are scored during training, how, and when."""
    evaluation = config.elc_bert.evaluation
    settings = PairSettings("within-word", evaluation.minimal_pairs_limit)
    pairs = sum(len(paradigm.pairs[: settings.limit]) for paradigm in paradigms)
    return (
        f"{evaluation.minimal_pairs}, {len(paradigms)} paradigms, {describe(settings, pairs)}, every "
        f"{evaluation.minimal_pairs_every} steps"
    )


def babylm_notes(run: Run, positions: dict[int, int]) -> Iterator[str]:
    """Yield notes about the rules of BabyLM and its milestones."""
    if note := epochs_warning(dict(zip(run.data.names, run.data.epochs(positions), strict=True))):
        yield note
    *_, (last, _) = run.schedule.phases_with_ends()
    exports = run.config.elc_bert.evaluation.babylm_checkpoints
    if exports and last.global_batch * last.sequence_length > MILLION:
        yield "a step may read over a million words: exports at neighboring milestones are then the same"
