"""Plan of a run: parameters, batch, memory, communication and time, as a table and as JSON."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from elc_bert.config.batch_plan import BatchPlan, divisors, plan_phases
from elc_bert.config.length_schedule import length_schedule
from elc_bert.config.schema import RunConfig
from elc_bert.planner.activations import Kernels
from elc_bert.planner.communication import Collective, collectives
from elc_bert.planner.devices import Device
from elc_bert.planner.memory import Memory, peak_memory, workload
from elc_bert.planner.parameters import Parameters, count_parameters
from elc_bert.planner.states import layout_of
from elc_bert.planner.timing import StepTime, step_time
from elc_bert.utils.text import human, summary_table


@dataclass(frozen=True)
class Machine:
    """Devices on which the run is planned."""

    device: Device
    devices: int
    interconnect: float
    """GB/s that each device sends."""
    mfu: float
    """Fraction of the peak that training is assumed to reach."""
    kernels: Kernels


@dataclass(frozen=True)
class PhasePlan:
    """One phase of the run."""

    sequence_length: int
    global_batch: int
    steps: int
    batch: BatchPlan
    memory: Memory
    exchanged: list[Collective]
    time: StepTime

    @property
    def seconds(self) -> float:
        """Seconds of all steps of the phase."""
        return self.steps * self.time.seconds


@dataclass(frozen=True)
class Plan:
    """Prediction for a run before it starts."""

    config: RunConfig
    machine: Machine
    parameters: Parameters
    phases: list[PhasePlan]

    @property
    def worst(self) -> PhasePlan:
        """The phase that needs the most memory."""
        return max(self.phases, key=lambda phase: phase.memory.total)

    @property
    def fits(self) -> bool:
        """True if every phase fits into a device's memory."""
        return self.worst.memory.total <= self.machine.device.memory

    @property
    def seconds(self) -> float:
        """Seconds of the whole run."""
        return sum(phase.seconds for phase in self.phases)


def make_plan(config: RunConfig, machine: Machine) -> Plan:
    """Plan a run.

    Raises:
        UserError: The batch cannot be divided among the devices, or DeepSpeed would refuse the configuration.
    """
    return _plan(config, machine, count_parameters(config.elc_bert.model))


def largest_micro_batch(plan: Plan) -> int | None:
    """Return the largest micro-batch that fits in both phases; None if not even 1 fits."""
    share = plan.config.train_batch_size // plan.machine.devices
    for size in reversed(divisors(share)):
        changes = {"train_micro_batch_size_per_gpu": size, "gradient_accumulation_steps": None}
        if _plan(plan.config.model_copy(update=changes), plan.machine, plan.parameters).fits:
            return size
    return None


def _plan(config: RunConfig, machine: Machine, parameters: Parameters) -> Plan:
    schedule = length_schedule(config)
    layout = layout_of(config, machine.devices)
    batches = plan_phases(config, schedule, machine.devices)
    phases = []
    for phase, end in schedule.phases_with_ends():
        batch = batches[phase.index]
        exchanged = collectives(layout, parameters, batch.accumulation, config.optimizer.is_lamb)
        load = workload(
            config, batch.micro_batch, phase.sequence_length, machine.kernels, machine.device.is_cpu
        )
        memory = peak_memory(
            config, parameters, load, batch.accumulation, machine.devices, machine.device.is_cpu
        )
        time = step_time(
            config,
            phase.sequence_length,
            phase.global_batch * phase.sequence_length,
            machine.devices,
            machine.device,
            machine.mfu,
            machine.interconnect,
            exchanged,
            layout.overlaps,
        )
        phases.append(
            PhasePlan(
                phase.sequence_length,
                phase.global_batch,
                end - phase.first_step,
                batch,
                memory,
                exchanged,
                time,
            )
        )
    return Plan(config, machine, parameters, phases)


def as_json(plan: Plan) -> dict[str, Any]:
    """Return all figures in bytes, seconds and plain numbers."""
    return {
        "fits": plan.fits,
        "seconds": plan.seconds,
        "machine": asdict(plan.machine),
        "parameters": {**asdict(plan.parameters), "total": plan.parameters.total},
        "phases": [
            {
                **asdict(phase),
                "memory": {**asdict(phase.memory), "total": phase.memory.total},
                "time": {
                    **asdict(phase.time),
                    "seconds": phase.time.seconds,
                    "tokens_per_second": phase.time.tokens_per_second,
                },
            }
            for phase in plan.phases
        ],
    }


def as_text(plan: Plan) -> str:
    """Format the plan as a table."""
    rows = [*_about_the_run(plan)]
    for phase in plan.phases:
        rows += [("", ""), *_about(phase, plan)]
    days = plan.seconds / 86400
    tokens = sum(phase.steps * phase.time.tokens for phase in plan.phases)
    rows += [("", ""), ("in total", f"{human(tokens)} tokens in {_days(days)}")]
    return "\n".join(line.rstrip() for line in summary_table(rows).splitlines())


def warnings(plan: Plan) -> list[str]:
    """Return what the user should change, one line each."""
    if plan.fits:
        return []
    needed, there = plan.worst.memory.total, plan.machine.device.memory
    largest = largest_micro_batch(plan)
    config = plan.config
    is_given = config.train_micro_batch_size_per_gpu is not None
    key = "train_micro_batch_size_per_gpu" if is_given else "elc_bert.training.max_micro_batch_size"
    # A given accumulation would fix the micro-batch.
    rest = "" if config.gradient_accumulation_steps is None else " --set gradient_accumulation_steps=null"
    advice = (
        f"the largest micro-batch that fits is {largest}: --set {key}={largest}{rest}"
        if largest
        else "not even a micro-batch of 1 fits: use more devices, a higher zero_optimization.stage, "
        "zero_optimization.offload_optimizer or elc_bert.training.activation_checkpointing"
    )
    return [
        f"does not fit: sequences of {plan.worst.sequence_length} need {_size(needed)} of {_size(there)}; "
        f"{advice}"
    ]


def _about_the_run(plan: Plan) -> Iterator[tuple[str, str]]:
    model, machine, counts = plan.config.elc_bert.model, plan.machine, plan.parameters
    yield (
        "model",
        f"ELC-BERT {model.variant}, {model.num_hidden_layers} layers x {model.hidden_size}, "
        f"{human(counts.total)} parameters",
    )
    for part in ("embedding", "layers", "mixing", "head"):
        yield f"  {part}", human(getattr(counts, part))
    tflops = machine.device.tflops(plan.config.precision)
    yield (
        "devices",
        f"{machine.devices} x {machine.device.name}, {tflops:.3g} TFLOPS at {machine.mfu:.0%} MFU (assumed), "
        f"{_size(machine.device.memory)}, {machine.interconnect:g} GB/s between them",
    )
    layout = layout_of(plan.config, machine.devices)
    details = [
        f"{plan.config.precision}, ZeRO stage {layout.stage}",
        f"{machine.kernels} kernels",
        *(["optimizer in CPU memory"] if layout.offloads_optimizer else []),
        *(["activation checkpointing"] if plan.config.elc_bert.training.activation_checkpointing else []),
    ]
    yield "precision", ", ".join(details)


def _about(phase: PhasePlan, plan: Plan) -> Iterator[tuple[str, str]]:
    yield (
        f"{phase.steps} steps",
        f"{phase.global_batch} sequences of {phase.sequence_length} = {phase.batch.micro_batch} micro-batch "
        f"x {phase.batch.accumulation} accumulation x {plan.machine.devices} devices",
    )
    memory = phase.memory
    yield "memory", f"{_size(memory.total)} per device at most, in the {_MOMENTS[memory.moment]}"
    yield "  process", _size(memory.baseline)
    for name, size in memory.pieces.items():
        yield f"  {name}", _size(size)
    if memory.activations:
        activations = memory.activations
        parts = {
            "activations of layers": activations.layers,
            "outputs of layers, and gradients": activations.hidden,
            "embedding and head": activations.ends,
            "logits and loss": activations.logits,
            "temporaries of the backward pass": activations.work,
            "gradients so far": activations.gradients,
        }
        for name, size in parts.items():
            if size:
                yield f"  {name}", _size(size)
    if memory.host:
        yield "host memory", f"{_size(memory.host)} for each device"
    for each in phase.exchanged:
        yield (
            f"{each.operation}",
            f"{each.what}, {_size(each.bytes)} a step, {_size(each.sent_per_device)} sent by each device",
        )
    time = phase.time
    shape = "overlapped with" if time.overlapped else "followed by"
    exchange = f", {shape} {time.communication:.3g} s of communication" if phase.exchanged else ""
    yield (
        "time",
        f"{time.compute:.3g} s of computation per step{exchange}; {human(time.tokens_per_second)} tokens/s, "
        f"{_days(phase.seconds / 86400)}",
    )


_MOMENTS = {"backward": "backward pass", "reduction": "reduction of gradients", "step": "optimizer's step"}


def _size(count: float) -> str:
    if count < 1024:
        return f"{count:.0f} bytes"
    for unit in ("KiB", "MiB"):
        count /= 1024
        if count < 1000:
            return f"{count:.3g} {unit}"
    return f"{count / 1024:.2f} GiB"


def _days(days: float) -> str:
    return f"{days:.3g} days" if days >= 1 else f"{24 * days:.3g} hours"
