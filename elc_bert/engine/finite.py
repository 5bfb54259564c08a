"""Check that a model and its optimizer hold numbers, before they are saved."""

from collections.abc import Iterator

import torch
from torch import Tensor

from elc_bert.engine.protocol import Engine
from elc_bert.engine.zero_layout import pieces_of_rank


def nonfinite_tensor(engine: Engine) -> str | None:
    """Return the name of a tensor that is NaN or infinite somewhere on this rank; None if there is none.

    The weights, their fp32 masters and the optimizer's state are examined, at any ZeRO stage. This rank's
    part of them is read once, and a GPU is waited for once. Not collective.
    """
    names, checks = [], []
    for name, tensor in _parts(engine):
        if tensor.numel() and tensor.is_floating_point():
            names.append(name)
            checks.append(tensor.detach().isfinite().all().to(engine.device))
    if not checks:
        return None
    bad = (~torch.stack(checks)).nonzero().flatten().tolist()
    return names[bad[0]] if bad else None


def _parts(engine: Engine) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and values of this rank's weights, master weights and optimizer state."""
    yield from engine.module.named_parameters()
    states = engine.basic_optimizer.state
    for flat, piece in pieces_of_rank(engine) or []:
        part = slice(piece.start, piece.start + piece.length)
        values = {"master weights": flat, **states.get(flat, {})}
        for kind, value in values.items():
            if isinstance(value, Tensor) and value.numel() == flat.numel():
                yield f"{piece.name} ({kind})", value.detach().view(-1)[part]
