"""This process and the other processes of a run."""

from dataclasses import dataclass, field

import torch

from elc_bert.distributed.watchdog.watchdog import Watchdog


@dataclass(frozen=True)
class World:
    """Place of this process among all processes of a run."""

    rank: int
    """Rank of this process."""
    size: int
    """Number of ranks."""
    device: torch.device
    """Device that this rank trains on."""
    watchdog: Watchdog = field(default_factory=Watchdog)
    """Watchdog of this rank; it does nothing in a run of one process."""

    @property
    def is_main(self) -> bool:
        """True if this is rank 0."""
        return self.rank == 0
