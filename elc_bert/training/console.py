"""What a person sees on the terminal."""

from elc_bert.config import RunConfig
from elc_bert.kernels import Kernels
from elc_bert.kernels.compiled import left_plain
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.optim.zero_layout import whole_numel
from elc_bert.training.distributed import World


def summary_table(rows: list[tuple[str, str]]) -> str:
    """Two aligned columns between two rules."""
    width = max(len(name) for name, _ in rows)
    lines = [f"  {name:<{width}}  {value}" for name, value in rows]
    rule = "-" * max(len(line) for line in lines)
    return "\n".join([rule, *lines, rule])


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
    rest = ", ".join(left_plain(kernels)).replace("_", " ")
    return f"{kind}; torch.compile of {rest or 'nothing, since no definition is left to compile'}"


def describe_schedule(config: RunConfig) -> str:
    optimizer = config.optimizer
    return (
        f"{optimizer.type}, peak learning rate {optimizer.params.get('lr')}, {config.scheduler.type} schedule"
    )


def human(number: float) -> str:
    """1234567 -> 1.23M"""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"
