"""Set-up of a run: everything is checked and built on all ranks together before the first step."""

from pathlib import Path

import torch
import torch.distributed as dist

from elc_bert.checkpoint.files import remove_unfinished
from elc_bert.checkpoint.identity import differences, run_identity
from elc_bert.checkpoint.manager import Checkpoints
from elc_bert.checkpoint.progress import Progress
from elc_bert.config.batch_plan import plan_phases
from elc_bert.config.deepspeed import check_deepspeed_sections
from elc_bert.config.length_schedule import length_schedule
from elc_bert.config.schema import RunConfig
from elc_bert.data.format.text_tokenizer import TextTokenizer
from elc_bert.data.format.vocabulary import load_tokenizer
from elc_bert.data.sampling.from_config import special_names
from elc_bert.distributed.collectives import agree
from elc_bert.distributed.signals import StopSignals
from elc_bert.distributed.world import World
from elc_bert.engine.build import build_engine, choose_kernels, reason_for_plain_lamb
from elc_bert.engine.monitor import RunMonitor, check_monitors
from elc_bert.engine.stepping import continue_at_min_loss_scale
from elc_bert.evaluation.minimal_pairs import Paradigm, read_paradigms
from elc_bert.evaluation.pseudo_likelihood import check_words
from elc_bert.hub.loading import load_model
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.training.checks.agreement import check_agreement, facts_of_data, facts_of_start
from elc_bert.training.checks.memory import check_memory
from elc_bert.training.data import open_data
from elc_bert.training.run import Run
from elc_bert.training.startup_report import report_start
from elc_bert.utils import logs
from elc_bert.utils.errors import UserError
from elc_bert.utils.files import atomic_write
from elc_bert.utils.peak_flops import measure_peak_flops

DTYPES = {
    "bf16": torch.bfloat16,
    "bf16 autocast": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}
"""Data type of matrix products, by ``RunConfig.precision``."""


def set_up(config: RunConfig, resume: str, world: World, init_from: Path | None = None) -> Run:
    """Check everything that can be checked, then build the engine and load the checkpoint. Collective.

    Args:
        config: Configuration of the run.
        resume: See ``Checkpoints.find``.
        world: Processes of the run.
        init_from: Model whose weights a new run starts from.

    Raises:
        UserError: Something does not fit on some rank. Raised on all ranks.
    """
    agree(world, check_deepspeed_sections, config)  # first collective, see processes._share_with_other_hosts
    check_agreement(world, facts_of_start(config, resume, init_from, world))
    signals = StopSignals(world)
    agree(world, check_monitors, config)
    plain_lamb = agree(world, reason_for_plain_lamb, config, world.device)
    kernels = agree(world, choose_kernels, config, world.device)
    schedule = agree(world, length_schedule, config)
    plans = agree(world, plan_phases, config, schedule, world.size)
    memory = agree(world, check_memory, config, kernels, world)
    data = agree(world, open_data, config, schedule, plans, world)
    facts = {"kernels": type(kernels).__name__, "reason for plain LAMB": plain_lamb}
    check_agreement(world, facts_of_data(config, data) | facts)
    checkpoints = Checkpoints(config, world, run_identity(config, data.identity))
    checkpoint, record = checkpoints.find(resume) or (None, {})
    progress = Progress.from_record(record.get("progress", {}))
    starts_from = None if checkpoint else init_from
    initial = agree(world, initial_model, config, starts_from) if starts_from else None
    paradigms = agree(world, minimal_pairs, config)
    engine = agree(world, build_engine, config, plans[schedule.phases[0].index], world, kernels, initial)
    if checkpoint is not None:
        agree(world, checkpoints.load, engine, checkpoint, record)
    continue_at_min_loss_scale(engine)
    agree(world, prepare_output_dir, config, world)
    logs.open_file(config.elc_bert.training.output_dir / logs.LOG_FILE, world.rank)
    monitor = agree(world, RunMonitor, config, progress.step)
    peak_flops = measure_peak_flops_of_all(config, world)
    run = Run(
        config,
        world,
        signals,
        schedule,
        plans,
        data,
        engine,
        checkpoints,
        progress,
        monitor,
        paradigms,
        peak_flops,
    )
    if world.is_main:
        report_start(run, checkpoint or starts_from, plain_lamb, memory)
    return run


def minimal_pairs(config: RunConfig) -> list[Paradigm]:
    """Read the minimal pairs to score during training, if any.

    Raises:
        UserError: They cannot be read, or the tokenizer does not divide text into words.
    """
    folder, data = config.elc_bert.evaluation.minimal_pairs, config.elc_bert.data
    if folder is None:
        return []
    check_words(TextTokenizer.load(data.tokenizer, special_names(data)), "within-word")
    return read_paradigms(folder)


def initial_model(config: RunConfig, path: Path) -> ElcBertForMaskedLM:
    """Load the model whose weights a new run starts from.

    Raises:
        UserError: It cannot be read, or its shape or its vocabulary is not that of the run's model.
    """
    loaded = load_model(path, config.elc_bert.model.variant)
    model = loaded.model
    not_of_weights = {"hidden_dropout_prob", "attention_probs_dropout_prob"}
    theirs, ours = (
        each.model_dump(mode="json", exclude=not_of_weights) for each in (model.config, config.elc_bert.model)
    )
    if changes := differences(theirs, ours, "elc_bert.model"):
        raise UserError(
            f"{path}: has another shape than the model of this run: {'; '.join(changes)}; set these to the "
            "values of the loaded model"
        )
    if loaded.tokenizer is not None:
        _check_vocabulary_of(loaded.tokenizer, config)
    return model


def _check_vocabulary_of(tokenizer: Path, config: RunConfig) -> None:
    """Check that the embeddings of a model with this tokenizer belong to the subwords of the run."""
    paths = tokenizer, config.elc_bert.data.tokenizer
    theirs, ours = (load_tokenizer(path, None).get_vocab() for path in paths)
    others = sum(theirs.get(subword) != number for subword, number in ours.items())
    if others:
        raise UserError(
            f"--init-from: {others:,} of the {len(ours):,} subwords of elc_bert.data.tokenizer have another "
            f"id or none in {tokenizer}, to which the weights belong; set elc_bert.data.tokenizer to it and "
            "build the datasets with it"
        )


def prepare_output_dir(config: RunConfig, world: World) -> None:
    """Create the output directory and save the resolved configuration in it.

    Raises:
        UserError: The directory cannot be written.
    """
    output_dir: Path = config.elc_bert.training.output_dir
    if world.is_main:
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
            with atomic_write(output_dir / "config.json", "w") as file:
                file.write(config.model_dump_json(indent=2) + "\n")
        except OSError as error:
            raise UserError(
                f"elc_bert.training.output_dir: cannot write to {output_dir} ({error.strerror}); choose "
                "another directory"
            ) from None
        remove_unfinished(output_dir / "checkpoints")


def measure_peak_flops_of_all(config: RunConfig, world: World) -> float:
    """Return the floating-point operations per second of matrix products on all devices. Collective."""
    dist.barrier()  # devices of one machine must be measured at the same time
    peak = measure_peak_flops(world.device, DTYPES[config.precision])
    total = torch.tensor(peak, dtype=torch.float64, device=world.device)
    dist.all_reduce(total)
    return total.item()
