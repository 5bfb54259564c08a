"""The optimizer's state in a checkpoint, tensor by tensor, whatever layout of DeepSpeed it was written in.

DeepSpeed's files hold what each rank had: flat partitions at ZeRO 1 and 2, shares of each tensor at 3.
Beside them every rank has left which pieces of which tensors these are (``rank-NNNNN.json``). From both any
run of elements of any tensor is read, without a converted copy on disk: files are mapped, and a rank reads
the elements that it needs.
"""

from collections import defaultdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elc_bert.checkpoint.files import rank_records
from elc_bert.engine.checkpoint_writer import load_state
from elc_bert.engine.zero_layout import Piece, pieces_of_rank, refresh_working_weights
from elc_bert.utils.errors import UserError

MASTER = "fp32"
"""Name of the weights themselves, beside the optimizer's ``exp_avg`` and so on."""


class SavedState:
    """The state in the directory of a checkpoint.

    Raises:
        UserError: the files do not say which pieces of tensors they hold.
    """

    def __init__(self, directory: Path):
        self._directory = directory
        self._ranks: list[_SavedRank] = []
        self._pieces: dict[str, list[tuple[_SavedRank, Piece]]] = defaultdict(list)
        records = rank_records(directory)
        self._engine_file = next(name for name in records[0]["files"] if name.endswith("model_states.pt"))
        for record in records:
            if record["pieces"] is None:
                raise UserError(
                    f"{directory}: DeepSpeed's layout of this optimizer is not known, so that it can be read "
                    "with the devices, ZeRO stage and precision that it was written with only"
                )
            if record["optimizer"] is not None:
                rank = _SavedRank(directory / record["optimizer"])
                self._ranks.append(rank)
                for values in record["pieces"]:
                    piece = Piece(*values)
                    self._pieces[piece.name].append((rank, piece))

    @cached_property
    def engine(self) -> dict[str, Any]:
        """What DeepSpeed keeps of the engine itself, and of the schedule."""
        return load_state(self._directory / self._engine_file, mapped=True)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Of the optimizer."""
        return self._ranks[0].base["param_groups"]

    @property
    def loss_scale(self) -> dict[str, float]:
        """Of fp16 where it is dynamic; else empty."""
        return self._ranks[0].loss_scale

    def keys(self, name: str) -> list[str]:
        """What the optimizer keeps of a tensor, element by element."""
        return [key for key, value in self._state_of(name).items() if _is_elementwise(value)]

    def scalars(self, name: str) -> dict[str, Any]:
        """What else it keeps of it, such as the number of steps."""
        return {key: value for key, value in self._state_of(name).items() if not _is_elementwise(value)}

    def read(self, name: str, key: str, offset: int, length: int) -> Tensor:
        """Elements ``offset`` to ``offset + length`` of a tensor, float32 [length].

        Args:
            key: ``MASTER``, or one of ``keys``.

        Raises:
            UserError: some of them are in no file.
        """
        out, found = torch.empty(length), 0
        for rank, piece in self._pieces[name]:
            begin = max(offset, piece.offset)
            end = min(offset + length, piece.offset + piece.length)
            if begin < end:
                start = piece.start + begin - piece.offset
                out[begin - offset : end - offset] = rank.flat(piece, key)[start : start + end - begin]
                found += end - begin
        if found != length:
            raise UserError(
                f"{self._directory}: holds {found} of {length} elements of {key} of {name}; resume from "
                "another checkpoint"
            )
        return out

    def whole(self, name: str, key: str = MASTER) -> Tensor:
        """All elements of a tensor, float32, flat."""
        return self.read(name, key, 0, max(piece.offset + piece.length for _, piece in self._pieces[name]))

    def _state_of(self, name: str) -> dict[str, Any]:
        rank, piece = self._pieces[name][0]
        return rank.base["state"].get(piece.parameter, {})


class _SavedRank:
    """The file with one rank's optimizer state."""

    def __init__(self, path: Path):
        self._path = path

    @cached_property
    def _content(self) -> dict[str, Any]:
        return load_state(self._path, mapped=True)

    @cached_property
    def _wrapper(self) -> dict[str, Any]:
        """What DeepSpeed's wrapper around the optimizer saves; the optimizer's own where there is none."""
        key = "optimizer_state_dict" if "optimizer_state_dict" in self._content else "optimizer"
        return self._content[key]

    @cached_property
    def base(self) -> dict[str, Any]:
        """The optimizer's ``state_dict``."""
        for key in ("base_optimizer_state", "optimizer_state_dict"):
            if key in self._wrapper:
                return self._wrapper[key]
        return self._wrapper

    @property
    def loss_scale(self) -> dict[str, float]:
        if not self._wrapper.get("dynamic_loss_scale"):
            return {}
        scaler = self._wrapper.get("loss_scaler")
        saved = vars(scaler) if scaler is not None else self._wrapper
        return {key: saved[key] for key in ("cur_scale", "cur_iter", "last_overflow_iter") if key in saved}

    @cached_property
    def _masters(self) -> list[Tensor] | None:
        """By number of the optimizer's parameter; None in fp32 without ZeRO, where the model's are these."""
        for key in ("single_partition_of_fp32_groups", "fp32_flat_groups"):
            if key in self._wrapper:
                return self._wrapper[key]
        if "fp32_groups" in self._wrapper:
            return [tensor for group in self._wrapper["fp32_groups"] for tensor in group]
        return None

    def flat(self, piece: Piece, key: str) -> Tensor:
        """The parameter of the optimizer that the piece is of, or its state, flat."""
        if key != MASTER:
            return self.base["state"][piece.parameter][key].view(-1)
        if self._masters is None:
            return self._content["module"][piece.name].view(-1)
        return self._masters[piece.parameter].view(-1)


def _is_elementwise(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


@torch.no_grad()
def load_into(engine: Any, saved: SavedState) -> None:
    """Put a checkpoint's state into an engine of whatever layout. Collective.

    Weights, moments, schedule and counters are those that were saved, to the bit, masters and moments being
    float32 in every layout.

    Raises:
        UserError: the engine's layout is not known, or something is missing in the checkpoint.
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
    refresh_working_weights(engine)
    for group, values in zip(optimizer.param_groups, saved.param_groups, strict=True):
        group.update({key: value for key, value in values.items() if key != "params"})
    if engine.fp16_enabled() and saved.loss_scale:
        scaler = getattr(engine.optimizer, "loss_scaler", None) or engine.optimizer.loss_scale_config
        for key, value in saved.loss_scale.items():
            setattr(scaler, key, value)
    engine.lr_scheduler.load_state_dict(saved.engine["lr_scheduler"])
    for counter in ("global_steps", "global_samples", "skipped_steps"):
        setattr(engine, counter, saved.engine[counter])
