"""Base class of callbacks."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from elc_bert.training.run import Run


class Callback(ABC):
    """Something that happens during training after some or all steps.

    A subclass implements ``after_step``, which decides whether anything is due, and is added to
    ``build_callbacks``. One that has state sets a ``name`` and implements ``state_dict`` and
    ``load_state_dict``; checkpoints then contain the state, and a resumed run restores it.
    """

    name: ClassVar[str] = ""
    """Key of the state in checkpoints; empty without state."""
    part_of_step: ClassVar[bool] = False
    """True if the time of ``after_step`` counts as training in tokens per second and MFU."""
    repeated_after_interruption: ClassVar[bool] = False
    """True if a resumed run calls this again after a signal interrupted the evaluations of its last step."""

    @abstractmethod
    def after_step(self, run: Run) -> None:
        """Do what is due after the step that has just been taken. Called on all ranks.

        Args:
            run: The run; ``run.progress.step`` is the number of steps taken, ``run.result`` the result of the
                last one on this rank.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint, as JSON values, the same on all ranks. Called on all ranks."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 (optional)
        """Restore the state from a checkpoint. Called on all ranks before the first step."""

    def close(self) -> None:  # noqa: B027 (optional)
        """Release resources at the end of the run."""


def states_of(callbacks: Iterable[Callback]) -> dict[str, Any]:
    """Return the states of callbacks by name, for a checkpoint. Collective."""
    return {callback.name: callback.state_dict() for callback in callbacks if callback.name}


def restore_states(callbacks: Sequence[Callback], states: Mapping[str, Any]) -> None:
    """Restore the states of callbacks, by name, from a checkpoint."""
    names = [callback.name for callback in callbacks if callback.name]
    assert len(names) == len(set(names)), f"two callbacks have the same name: {sorted(names)}"
    for callback in callbacks:
        if callback.name in states:
            callback.load_state_dict(states[callback.name])
