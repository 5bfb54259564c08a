"""Check that a checkpoint would hold numbers, since it replaces earlier ones."""

from pathlib import Path

from elc_bert.checkpoint.files import newest_first
from elc_bert.distributed.world import World
from elc_bert.engine.finite import nonfinite_tensor
from elc_bert.engine.protocol import Engine
from elc_bert.utils.errors import UserError


def check_finite(engine: Engine, world: World, final: Path) -> None:
    """Check the model and the optimizer's state on this rank.

    Args:
        engine: Engine to be saved.
        world: Processes of the run.
        final: Directory of the checkpoint.

    Raises:
        UserError: A tensor is NaN or infinite.
    """
    name = nonfinite_tensor(engine)
    if name is None:
        return
    (good, *_) = [*newest_first(final.parent), None]
    raise UserError(
        f"{final}: not written, because {name} holds NaN or infinite numbers on rank {world.rank}; the last "
        f"good checkpoint is {'none' if good is None else good.name}: resume from it on other devices, or "
        "start a new run with a lower learning rate"
    )
