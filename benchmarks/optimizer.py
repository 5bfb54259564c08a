"""Compare the time of an optimizer step with the limit of memory bandwidth; see ``--help``."""

import argparse
import itertools
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from reporting import add_json, report_to_user
from torch import Tensor, nn
from tqdm import tqdm

from elc_bert.config.schema import ModelConfig
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.optim import Lamb, parameter_groups
from elc_bert.optim.fragments import Fragment
from elc_bert.optim.lamb import Partition
from elc_bert.utils.errors import UserError
from elc_bert.utils.machine import free_port
from elc_bert.utils.options import positive_int

SIZES = {
    "small": ModelConfig(),
    "base": ModelConfig(hidden_size=768, intermediate_size=2048, num_attention_heads=12, vocab_size=16384),
}
ONE_PASS = 28
"""Bytes per weight that a step reads (gradient, weight, both moments) and writes (all but the gradient)."""
SECOND_PASS = 16
"""Bytes per weight of the second pass over decaying tensors, whose norms are known only after the first.

Weight and moments are read again, and the weight is written.
"""
RANKS = 2
COPY, IN_PLACE = "copy", "in place"
PLAIN = "LAMB, plain, tensor by tensor"

EPILOG = """what is measured:
  Several optimizers take steps on the model's parameter tensors with random gradients, alternately, for
  some rounds. The figure of an optimizer is the median over the rounds, so that other load on the machine
  affects all of them alike.
  / copy      time relative to copying the bytes that a step must move: 28 per element (read gradient,
              weight and two moments; write weight and moments)
  / in place  the same, relative to changing memory in place, which is faster where a processor reads the
              destination of a copy before it writes it
  / 2 passes  in place, with 16 more bytes per element of tensors with weight decay: LAMB scales the step of
              a tensor by norms that are known only after a first pass over it
  plain /     how many times faster than the plain definition
  The bytes that LAMB sends under ZeRO are counted while two processes take steps of real shards.

examples:
  python benchmarks/optimizer.py
  python benchmarks/optimizer.py --size small --rounds 3 --json /tmp/optimizer.json
"""


@dataclass(frozen=True)
class Group:
    """Parameter group in one contiguous buffer."""

    shapes: list[torch.Size]
    decay: float
    flat: Tensor
    """Contiguous weights, with a gradient."""

    @property
    def lengths(self) -> list[int]:
        """Number of elements of each tensor."""
        return [shape.numel() for shape in self.shapes]

    def tensors(self) -> list[nn.Parameter]:
        """Return the model's tensors as views, with gradients."""
        assert self.flat.grad is not None
        weights, gradients = self.flat.split(self.lengths), self.flat.grad.split(self.lengths)
        parameters = []
        for shape, weight, gradient in zip(self.shapes, weights, gradients, strict=True):
            parameters.append(nn.Parameter(weight.view(shape)))
            parameters[-1].grad = gradient.view(shape)
        return parameters

    def partition(self, rank: int, ranks: int, process_group: Any = None) -> tuple[nn.Parameter, Partition]:
        """Return one rank's partition, which begins and ends anywhere in a tensor as under ZeRO 1 and 2."""
        assert self.flat.grad is not None
        low, high = (len(self.flat) * i // ranks for i in (rank, rank + 1))
        share = nn.Parameter(self.flat[low:high])
        share.grad = self.flat.grad[low:high]
        fragments = []
        for number, (first, end) in enumerate(
            itertools.pairwise(itertools.accumulate(self.lengths, initial=0))
        ):
            start, stop = max(first, low), min(end, high)
            if start < stop:
                fragments.append(Fragment(number, start - low, stop - start))
        names = tuple(map(str, range(len(self.shapes))))
        return share, Partition(names, tuple(fragments), process_group)


def build_groups(size: str, device: str) -> list[Group]:
    """Return the parameter groups of a model of a size, with random weights and gradients."""
    with torch.device("meta"):
        model = ElcBertForMaskedLM(SIZES[size])
    groups = []
    for group in parameter_groups(model, weight_decay=0.1):
        shapes = [p.shape for p in group["params"]]
        flat = torch.randn(sum(shape.numel() for shape in shapes), device=device) * 0.02
        flat.grad = torch.randn_like(flat) * 1e-3
        groups.append(Group(shapes, group["weight_decay"], flat))
    return groups


def lamb_of_tensors(groups: Sequence[Group], fused: bool) -> Lamb:
    """Return LAMB on whole tensors, as without ZeRO."""
    return Lamb([{"params": g.tensors(), "weight_decay": g.decay} for g in groups], lr=1e-4, fused=fused)


def lamb_of_partitions(
    groups: Sequence[Group], rank: int = 0, ranks: int = 1, process_group: Any = None
) -> Lamb:
    """Return LAMB on flat partitions, as under ZeRO 1 and 2."""
    shares = [group.partition(rank, ranks, process_group) for group in groups]
    options = [
        {"params": [share], "weight_decay": group.decay}
        for group, (share, _) in zip(groups, shares, strict=True)
    ]
    lamb = Lamb(options, lr=1e-4, fused=True)
    lamb.shard(dict(shares))
    return lamb


def candidates(groups: Sequence[Group], device: str) -> dict[str, Callable[[], Any]]:
    """Return a step function of each optimizer; they share weights and gradients."""
    adamw = torch.optim.AdamW(
        [{"params": g.tensors(), "weight_decay": g.decay} for g in groups], lr=1e-4, fused=True
    )
    steps: dict[str, Callable[[], Any]] = {
        "LAMB, kernels, whole tensors (ZeRO 0)": lamb_of_tensors(groups, fused=True).step,
        "LAMB, kernels, flat partitions (ZeRO 1, 2)": lamb_of_partitions(groups).step,
        PLAIN: lamb_of_tensors(groups, fused=False).step,
        "torch.optim.AdamW(fused=True)": adamw.step,
    }
    if device == "cuda":
        try:
            from deepspeed.ops.lamb import FusedLamb

            options = [{"params": g.tensors(), "weight_decay": g.decay} for g in groups]
            steps["deepspeed.ops.lamb.FusedLamb"] = FusedLamb(options, lr=1e-4).step
        except Exception as error:  # compiling the operator can fail in many ways
            print(f"DeepSpeed's FusedLamb could not be built: {error}", file=sys.stderr)
    return steps


def seconds(work: Callable[[], Any], times: int, device: str) -> float:
    """Return the shortest time of several calls; on a GPU the mean, because calls are queued."""
    taken = []
    if device == "cuda":
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(times):
            work()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / times
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


def measure(groups: Sequence[Group], rounds: int, steps: int, device: str) -> dict[str, float]:
    """Return the seconds of a step of each optimizer, and of copying and changing as many elements."""
    source = torch.cat([group.flat for group in groups])
    target = torch.empty_like(source)
    works = dict(zip((COPY, IN_PLACE), (lambda: target.copy_(source), source.neg_), strict=True))
    works |= candidates(groups, device)
    taken: dict[str, list[float]] = {name: [] for name in works}
    with tqdm(total=(rounds + 1) * len(works), unit="", file=sys.stderr, leave=False) as bar:
        for number in range(rounds + 1):
            for name, work in works.items():
                bar.set_description(f"round {number} of {rounds}: {name}" if number else f"warm up: {name}")
                if number == 0:
                    work()
                else:
                    taken[name].append(seconds(work, steps, device))
                bar.update()
    return {name: statistics.median(values) for name, values in taken.items()}


def count_bytes(rank: int, size: str, port: int, folder: str) -> None:
    """Take three steps on one rank's shard, and write the bytes that it all-reduces in each to a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS)
    lamb = lamb_of_partitions(build_groups(size, "cpu"), rank, RANKS, dist.group.WORLD)
    sent: list[int] = []
    all_reduce = dist.all_reduce

    def counted(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
        sent[-1] += tensor.nbytes
        return all_reduce(tensor, *arguments, **options)

    dist.all_reduce = counted
    for _ in range(3):
        sent.append(0)
        lamb.step()
    Path(folder, str(rank)).write_text(json.dumps(sent), encoding="utf-8")
    dist.destroy_process_group()


def communicated_bytes(size: str) -> int:
    """Return the bytes that every rank all-reduces in a step under ZeRO 1 or 2."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(count_bytes, (size, free_port(), folder), nprocs=RANKS)
        sent = [json.loads(path.read_text(encoding="utf-8")) for path in Path(folder).iterdir()]
    (count,) = {count for of_rank in sent for count in of_rank}
    return count


@dataclass(frozen=True)
class Report:
    """Results of the benchmark."""

    machine: dict[str, Any]
    size: str
    elements: int
    tensors: int
    tensors_with_trust_ratio: int
    bytes_all_reduced_per_step: int
    memory_bytes_per_second: dict[str, float]
    limit_seconds: dict[str, float]
    seconds_per_step: dict[str, float]

    def lines(self) -> list[str]:
        """Return the lines of the report."""
        plain = self.seconds_per_step[PLAIN]
        lines = [
            f"{self.size} model: {self.elements:,} weights in {self.tensors} tensors, on "
            + ", ".join(f"{name} {value}" for name, value in self.machine.items()),
            "memory, bytes read and written: "
            + ", ".join(f"{v / 1e9:.1f} GB/s by {name}" for name, v in self.memory_bytes_per_second.items()),
            "",
            f"{'':42}  ms per step"
            + "".join(f"{'/ ' + name:>12}" for name in self.limit_seconds)
            + "   plain /",
            f"{'limit':42}{'':13}" + "".join(f"{t * 1e3:9.2f} ms" for t in self.limit_seconds.values()),
        ]
        lines += [
            f"{name:42} {taken * 1e3:12.2f}"
            + "".join(f"{taken / limit:12.2f}" for limit in self.limit_seconds.values())
            + f"{plain / taken:10.2f}"
            for name, taken in self.seconds_per_step.items()
        ]
        return [
            *lines,
            "",
            f"under ZeRO 1 and 2, {RANKS} ranks all-reduced {self.bytes_all_reduced_per_step} bytes in each "
            f"step: 8 for each of the {self.tensors_with_trust_ratio} tensors with a trust ratio",
        ]


def benchmark(arguments: argparse.Namespace) -> Report:
    """Time one step of each optimizer, in turn."""
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no GPU; use --device cpu or auto")
    sent = communicated_bytes(arguments.size)
    groups = build_groups(arguments.size, device)
    taken = measure(groups, arguments.rounds, arguments.steps, device)
    elements = {group.decay: len(group.flat) for group in groups}
    with_ratio = sum(len(group.shapes) for group in groups if group.decay > 0)
    assert sent == 8 * with_ratio
    total, decaying = sum(elements.values()), sum(n for decay, n in elements.items() if decay > 0)
    speeds = {name: 8 * total / taken.pop(name) for name in (COPY, IN_PLACE)}
    limits = {name: ONE_PASS * total / speed for name, speed in speeds.items()}
    limits["2 passes"] = (ONE_PASS * total + SECOND_PASS * decaying) / speeds[IN_PLACE]
    return Report(
        machine={
            "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "CPU",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
        size=arguments.size,
        elements=total,
        tensors=sum(len(group.shapes) for group in groups),
        tensors_with_trust_ratio=with_ratio,
        bytes_all_reduced_per_step=sent,
        memory_bytes_per_second=speeds,
        limit_seconds=limits,
        seconds_per_step=taken,
    )


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="optimizer.py",
        description="Time steps of LAMB and of other optimizers against what the speed of memory allows.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--size", choices=SIZES, default="base", help="model: small 24M weights, base 98M (default: base)"
    )
    parser.add_argument(
        "--rounds", type=positive_int, default=7, metavar="N", help="rounds over all optimizers (default: 7)"
    )
    parser.add_argument(
        "--steps",
        type=positive_int,
        default=3,
        metavar="N",
        help="steps per optimizer and round; the shortest counts on a CPU, the mean on a GPU (default: 3)",
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="device; cuda includes ROCm (default: auto)",
    )
    add_json(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(report_to_user("optimizer.py", parse_arguments(sys.argv[1:]), benchmark))
