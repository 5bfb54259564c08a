"""Optimizer state of a checkpoint, tensor by tensor, for a run of any layout.

DeepSpeed's files hold the state of each rank: flat partitions at ZeRO 1 and 2, shares of each tensor at ZeRO
3. With each file, the rank has left a record of the pieces of tensors in it (``rank-NNNNN.json``). From both,
any elements of any tensor can be read without a converted copy on disk: the files are mapped into memory, and
a rank reads the elements that it needs.
"""

from collections import defaultdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elc_bert.checkpoint.files import rank_records
from elc_bert.engine.checkpoint_reader import MASTER, OptimizerFile, load_state
from elc_bert.engine.protocol import Engine
from elc_bert.engine.stepping import restore_loss_scale
from elc_bert.engine.weights import copy_masters_to_model
from elc_bert.engine.zero_layout import Piece, pieces_of_rank
from elc_bert.utils.errors import UserError


class SavedState:
    """State in the directory of a checkpoint.

    Raises:
        UserError: The records do not say which pieces of tensors the files hold.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: list[OptimizerFile] = []
        self._pieces: dict[str, list[tuple[OptimizerFile, Piece]]] = defaultdict(list)
        records = rank_records(directory)
        self._engine_file = next(name for name in records[0]["files"] if name.endswith("model_states.pt"))
        for record in records:
            if record["pieces"] is None:
                raise UserError(
                    f"{directory}: DeepSpeed's layout of this optimizer is not known; resume with the "
                    "devices, ZeRO stage and precision of the checkpoint"
                )
            if record["optimizer"] is not None:
                file = OptimizerFile(directory / record["optimizer"])
                self._files.append(file)
                for values in record["pieces"]:
                    piece = Piece(*values)
                    self._pieces[piece.name].append((file, piece))

    @cached_property
    def engine(self) -> dict[str, Any]:
        """State of the engine itself, and of the schedule."""
        state: dict[str, Any] = load_state(self._directory / self._engine_file, mapped=True)
        return state

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimizer."""
        groups: list[dict[str, Any]] = self._files[0].base["param_groups"]
        return groups

    @property
    def loss_scale(self) -> dict[str, float]:
        """State of the dynamic loss scale of fp16; empty otherwise."""
        return self._files[0].loss_scale

    def keys(self, name: str) -> list[str]:
        """Return the keys of the optimizer's state of a tensor that have one value per element."""
        return [key for key, value in self._state_of(name).items() if _is_elementwise(value)]

    def scalars(self, name: str) -> dict[str, Any]:
        """Return the rest of the optimizer's state of a tensor, such as the number of steps."""
        return {key: value for key, value in self._state_of(name).items() if not _is_elementwise(value)}

    def read(self, name: str, key: str, offset: int, length: int) -> Tensor:
        """Return elements ``offset`` to ``offset + length`` of a tensor, float32 ``[length]``.

        Args:
            name: Name of a tensor of the model.
            key: ``MASTER`` for the weights, or one of ``keys``.
            offset: First element.
            length: Number of elements.

        Raises:
            UserError: Some of the elements are in no file.
        """
        out, found = torch.empty(length), 0
        for file, piece in self._pieces[name]:
            begin = max(offset, piece.offset)
            end = min(offset + length, piece.offset + piece.length)
            if begin < end:
                start = piece.start + begin - piece.offset
                flat = file.flat(piece.parameter, piece.name, key)
                out[begin - offset : end - offset] = flat[start : start + end - begin]
                found += end - begin
        if found != length:
            raise UserError(
                f"{self._directory}: holds {found} of {length} elements of {key} of {name}; resume from "
                "another checkpoint"
            )
        return out

    def whole(self, name: str, key: str = MASTER) -> Tensor:
        """Return all elements of a tensor, float32, flat."""
        return self.read(name, key, 0, max(piece.offset + piece.length for _, piece in self._pieces[name]))

    def _state_of(self, name: str) -> dict[str, Any]:
        file, piece = self._pieces[name][0]
        state: dict[str, Any] = file.base["state"].get(piece.parameter, {})
        return state


def _is_elementwise(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


@torch.no_grad()
def load_into(engine: Engine, saved: SavedState) -> None:
    """Load a checkpoint into an engine of any layout. Collective.

    Weights, moments, schedule and counters become bit-identical to the saved ones, because master weights and
    moments are float32 in every layout.

    Raises:
        UserError: The engine's layout is unknown, or the checkpoint is incomplete.
    """
    pieces = pieces_of_rank(engine)
    if pieces is None:
        raise UserError(
            f"optimizer.type: DeepSpeed's layout in {type(engine.optimizer).__name__} is not known; resume "
            "with the devices, ZeRO stage and precision of the checkpoint"
        )
    optimizer = engine.basic_optimizer
    for parameter, piece in pieces:
        state = optimizer.state[parameter]
        part = slice(piece.start, piece.start + piece.length)
        parameter.data.view(-1)[part] = saved.read(piece.name, MASTER, piece.offset, piece.length)
        for key in saved.keys(piece.name):
            if key not in state:
                state[key] = torch.zeros_like(parameter)
            state[key].view(-1)[part] = saved.read(piece.name, key, piece.offset, piece.length)
        for key, value in saved.scalars(piece.name).items():
            state[key] = value.clone() if isinstance(value, Tensor) else value
    copy_masters_to_model(engine)
    for group, values in zip(optimizer.param_groups, saved.param_groups, strict=True):
        group.update({key: value for key, value in values.items() if key != "params"})
    restore_loss_scale(engine, saved.loss_scale)
    engine.lr_scheduler.load_state_dict(saved.engine["lr_scheduler"])
    engine.global_steps = saved.engine["global_steps"]
    engine.global_samples = saved.engine["global_samples"]
    engine.skipped_steps = saved.engine["skipped_steps"]
