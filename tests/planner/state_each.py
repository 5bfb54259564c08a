"""Take two steps with every ZeRO stage and precision; print the actual and the planned bytes of tensors."""

import gc
import json
import sys
import warnings
import weakref
from pathlib import Path

import torch

from elc_bert.config.batch_plan import BatchPlan
from elc_bert.config.reader import load_config
from elc_bert.engine.build import build_engine
from elc_bert.engine.processes import connect, run_command
from elc_bert.planner.parameters import count_parameters
from elc_bert.planner.states import layout_of, pieces
from elc_bert.training.find_micro_batch import full_batch
from elc_bert.training.step import train_step

SHAPE = ["elc_bert.model.hidden_size=128", "elc_bert.model.num_attention_heads=4", "train_batch_size=8"]


def all_tensors() -> list[torch.Tensor]:
    """Return all CPU tensors of this process that are still in use."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter)]
    return [tensor for tensor in tensors if tensor.is_cpu]


def bytes_since(earlier: list[weakref.ref]) -> int:
    """Return the bytes of all tensors except the ``earlier`` ones, which another engine may still hold."""
    gc.collect()
    others = {tensor.untyped_storage().data_ptr() for ref in earlier if (tensor := ref()) is not None}
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in all_tensors()}
    return sum(size for address, size in storages.items() if address not in others)


def command(watchdog) -> None:
    warnings.simplefilter("ignore")
    world = connect(watchdog)
    for stage in range(4):
        for precision, sums in (("fp32", None), ("bf16", None), ("bf16", "fp32")):
            if stage == 0 and sums:
                continue
            zero = {"stage": stage, "reduce_bucket_size": 1_000_000}
            overrides = [
                *SHAPE,
                "elc_bert.model.num_hidden_layers=3",
                f"zero_optimization={json.dumps(zero)}",
                f"bf16.enabled={json.dumps(precision == 'bf16')}",
                f"data_types={json.dumps({'grad_accum_dtype': sums} if sums else {})}",
            ]
            config = load_config(Path(sys.argv[1]), overrides)
            earlier = [weakref.ref(tensor) for tensor in all_tensors()]
            engine = build_engine(config, BatchPlan(2, 4 // world.size, world.size), world)
            for _ in range(2):
                train_step(engine, [full_batch(config, 1, 16)] * 2, world, 0.0, seed=0)
            left = bytes_since(earlier)
            planned = sum(
                piece.bytes
                for piece in pieces(
                    layout_of(config, world.size), count_parameters(config.elc_bert.model), on_cpu=False
                )
                if piece.when == "always"
            )
            if world.is_main:
                print(f"{stage} {precision} {sums}: {left} {planned:.0f}", flush=True)
            del engine


if __name__ == "__main__":
    run_command(command)
