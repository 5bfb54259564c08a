"""Compare training steps with the device's fastest matrix product; see ``--help``."""

import argparse
import importlib
import itertools
import multiprocessing
import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch
from matrix_peak import Peak
from optimizer import SIZES
from reporting import add_json, report_to_user
from tqdm import tqdm
from training_report import COLORS, Report, Speed, draw
from training_step import DTYPES, REST, Memory, Reader, StepTimer, Training, measure_memory, synchronize

from elc_bert.config.length_schedule import LengthSchedule
from elc_bert.config.schema import ModelConfig
from elc_bert.data.sampling.blend import Portion
from elc_bert.data.sampling.masking import Masking
from elc_bert.data.sampling.steps import MicroBatch, TrainingSteps
from elc_bert.kernels import kernels_for
from elc_bert.kernels.compiled import check_compiler, compile_kernels
from elc_bert.model import flops_per_token
from elc_bert.utils.errors import UserError
from elc_bert.utils.machine import available_cores, keep_freed_memory
from elc_bert.utils.options import positive_int

MASKED = Masking().mask_p
SETTINGS = ("size", "layers", "length", "batch", "precision", "rounds")
EPILOG = """what is measured:
  Whole training steps in one process: read, forward, backward and LAMB, with dropout as in training, without
  DeepSpeed and gradient clipping. In bf16 the weights, activations and gradients are bfloat16, and LAMB steps
  fp32 master weights. Candidates take steps alternately, A B A B, and matrix products are measured in
  between; figures are medians over the rounds.
  peak   the highest speed that a product of PyTorch sustains for a fifth of a second, among square matrices
         and products of the model's weights with activations; the fastest single product is shown too. A CPU
         without bfloat16 instructions multiplies fp32 faster, which then is the peak
  MFU    the operations that a step needs for its real tokens (elc_bert/model/flops.py) at the peak speed, as
         a share of the time that it took
  parts  times from up to three more steps, in which every module is timed forward and every autograd node
         backward (it counts for the module that created it), scaled to the time of the other steps
  peak memory       during a step: of a separate process on a CPU, of PyTorch's tensors on a GPU
  peak activations  during forward and backward, in addition to weights, gradients and moments

examples:
  python benchmarks/train.py --compare
  python benchmarks/train.py --length 512 --batch 8 --precision bf16 --compare --picture /tmp/train.png
  python benchmarks/train.py --size base --length 512 --batch 2 --compare --memory-only
  python benchmarks/train.py --length 512 --batch 8 --data data/strict_small/train
"""


@dataclass(frozen=True)
class Candidate:
    """One configuration of kernels and input for the same steps."""

    kernels: str
    """``auto``, ``fused`` or ``plain``."""
    compile: bool
    pack: bool | None
    """Pack several samples into a row. None if all rows are full."""

    def __str__(self) -> str:
        layout = {None: "", True: ", packed", False: ", padded"}[self.pack]
        return self.kernels + (" compiled" if self.compile else "") + layout


def read_synthetic(vocabulary: int, length: int, batch: int) -> Reader:
    """Return a reader of full rows of random tokens, of which the share ``MASKED`` is masked."""
    generator = torch.Generator().manual_seed(1)

    def read() -> list[MicroBatch]:
        ids = torch.randint(7, vocabulary, (batch, length), generator=generator)
        positions = torch.randperm(ids.numel(), generator=generator)[: max(1, round(MASKED * ids.numel()))]
        positions = positions.sort().values
        is_real = torch.ones(batch, length, dtype=torch.bool)
        return [MicroBatch(ids, is_real, positions, ids.view(-1)[positions], ids.numel())]

    return read


def read_dataset(arguments: argparse.Namespace, pack: bool) -> Reader:
    """Return a reader of real samples, the same for every candidate."""
    samples = arguments.micro_batches * arguments.batch
    steps = TrainingSteps(
        [Portion(arguments.data)],
        LengthSchedule(arguments.rounds + 100, arguments.length, samples, 1.0),
        seed=1,
        masking=Masking(),
        vocab_size=SIZES[arguments.size].vocab_size,
        rank=0,
        world_size=1,
        micro_batch_of=lambda _: arguments.batch,
        pack=pack,
    )
    numbers = itertools.count()
    return lambda: steps[next(numbers) % len(steps)]


def model_config(arguments: argparse.Namespace) -> ModelConfig:
    """Return the configuration of the model that the options describe."""
    return SIZES[arguments.size].model_copy(update={"num_hidden_layers": arguments.layers})


def build(arguments: argparse.Namespace, candidate: Candidate, device: torch.device) -> Training:
    """Build a model, its optimizer and its input for a candidate."""
    config = model_config(arguments)
    kernels = kernels_for(device.type, candidate.kernels)
    if candidate.pack is None:
        read = read_synthetic(config.vocab_size, arguments.length, arguments.batch)
    else:
        read = read_dataset(arguments, candidate.pack)
    return Training(
        config, compile_kernels(kernels) if candidate.compile else kernels, arguments.precision, device, read
    )


def memory_of(arguments: argparse.Namespace, candidate: Candidate, device: torch.device) -> Memory:
    """Measure the memory of one step of a candidate."""
    torch.set_num_threads(arguments.threads)
    return measure_memory(build(arguments, candidate, device))


def memory_of_fresh_process(
    arguments: argparse.Namespace, candidate: Candidate, device: torch.device
) -> Memory:
    """Measure memory in a new process, because on a CPU a process keeps what it has freed."""
    if device.type == "cuda":
        return memory_of(arguments, candidate, device)
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as process:
            return process.submit(memory_of, arguments, candidate, device).result()
    except BrokenProcessPool:
        raise UserError(
            f"{candidate}: the process that measures memory was killed, probably because memory ran out; "
            "use a smaller --batch"
        ) from None


def take_turns(
    trainings: dict[str, Training], peak: Peak, rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[tuple[int, int]]], dict[str, Counter[str]]]:
    """Return seconds of steps, real and all tokens, and seconds of parts, by candidate."""
    taken: dict[str, list[float]] = {name: [] for name in trainings}
    tokens: dict[str, list[tuple[int, int]]] = {name: [] for name in trainings}
    parts: dict[str, Counter[str]] = {name: Counter() for name in trainings}
    with tqdm(total=(rounds + 1) * len(trainings), unit="", file=sys.stderr, leave=False) as bar:
        for number in range(rounds + 1):
            peak.measure()
            for name, training in trainings.items():
                bar.set_description(f"round {number} of {rounds}: {name}" if number else f"warm up: {name}")
                seconds, counts = time_step(training, number)
                if number:
                    taken[name].append(seconds)
                    tokens[name].append(counts)
                if 0 < number <= 3:
                    parts[name] += parts_of_step(training, number)
                bar.update()
    return taken, tokens, parts


def time_step(training: Training, seed: int) -> tuple[float, tuple[int, int]]:
    """Time a step.

    Returns:
        Seconds, and the numbers of real and of all tokens in the step.
    """
    counts = [0, 0]
    read = training.read

    def counted() -> Sequence[MicroBatch]:
        micro_batches = read()
        counts[0] += sum(micro.tokens for micro in micro_batches)
        counts[1] += sum(micro.input_ids.numel() for micro in micro_batches)
        return micro_batches

    training.read = counted
    torch.manual_seed(seed)
    synchronize(training.device)
    start = time.perf_counter()
    training.step()
    synchronize(training.device)
    seconds = time.perf_counter() - start
    training.read = read
    return seconds, (counts[0], counts[1])


def parts_of_step(training: Training, seed: int) -> Counter[str]:
    """Time each part of a step, in seconds."""
    timer = StepTimer(training.device)
    torch.manual_seed(seed)
    synchronize(training.device)
    with timer.instrument(training.model):
        start = time.perf_counter()
        training.step(timer)
        synchronize(training.device)
        whole = time.perf_counter() - start
    parts = timer.seconds()
    parts[REST] = whole - sum(seconds for part, seconds in parts.items() if part != REST)
    return parts


def benchmark(arguments: argparse.Namespace) -> Report:
    """Measure speed and memory of all candidates, in turn."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.device == "cpu":
        device = torch.device("cpu")
    elif arguments.device == "cuda" and device.type == "cpu":
        raise UserError("--device cuda: PyTorch finds no GPU; use --device cpu or auto")
    names = ["plain"] if arguments.compare else []
    kinds = [(arguments.kernels, arguments.compile), *((name, False) for name in names)]
    if len(set(kinds)) < len(kinds):
        raise UserError(
            "--kernels plain --compare: compares the definitions with themselves; drop one of them"
        )
    candidates = [
        Candidate(kernels, compile, pack)
        for kernels, compile in kinds
        for pack in ((True, False) if arguments.data else (None,))
    ]
    for candidate in candidates:
        kernels_for(device.type, candidate.kernels)
    if arguments.data:
        read_dataset(arguments, pack=True)  # this reports errors before anything is measured
    # Memory is measured in forked processes, so this comes before this process starts threads or uses memory.
    importlib.import_module("torch._dynamo")  # optimizers import it, so import it before measuring
    memory = {str(each): memory_of_fresh_process(arguments, each, device) for each in candidates}
    torch.set_num_threads(arguments.threads)
    rows = min(arguments.batch * arguments.length, 4096 if device.type == "cpu" else 65536)
    peak = Peak(model_config(arguments), rows, round(MASKED * rows), arguments.precision, device)
    speed = {}
    if not arguments.memory_only:
        if arguments.compile:
            check_compiler(device)
        speed = measure_speed(arguments, candidates, peak, device)
    peak_of, peak_flops = peak.best if speed else ("", 0.0)
    return Report(
        machine={
            "device": torch.cuda.get_device_name()
            if device.type == "cuda"
            else platform.processor() or "CPU",
            "threads": arguments.threads,
            "torch": torch.__version__,
        },
        settings={
            name: str(getattr(arguments, name))
            for name in ("size", "layers", "length", "batch", "precision", "rounds")
        }
        | {"data": str(arguments.data or "synthetic, full rows")},
        peak_flops=peak_flops,
        peak_of=peak_of,
        burst_flops=peak.burst,
        product_flops=peak.flops,
        speed=speed,
        memory=memory,
    )


def measure_speed(
    arguments: argparse.Namespace, candidates: Sequence[Candidate], peak: Peak, device: torch.device
) -> dict[str, Speed]:
    """Measure the speed of each candidate, in turn, and where the time is spent."""
    if device.type == "cpu":
        keep_freed_memory()  # training does the same
    trainings = {str(each): build(arguments, each, device) for each in candidates}
    taken, tokens, parts = take_turns(trainings, peak, arguments.rounds)
    speed = {}
    for name in trainings:
        seconds = statistics.median(taken[name])
        real, every = (statistics.fmean(column) for column in zip(*tokens[name], strict=True))
        flops = flops_per_token(model_config(arguments), arguments.length, MASKED) * real
        scale = seconds / parts[name].total()
        speed[name] = Speed(
            seconds,
            real,
            every,
            flops / seconds / peak.best[1],
            {part: parts[name][part] * scale for part in COLORS},
        )
    return speed


def measure_and_draw(arguments: argparse.Namespace) -> Report:
    """Measure, and draw a picture if ``--picture`` is given."""
    if arguments.picture and arguments.memory_only:
        raise UserError("--picture shows times, which --memory-only does not measure; drop one of them")
    report = benchmark(arguments)
    if arguments.picture:
        draw(report, arguments.picture)
    return report


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Time training steps and their parts against what the device's matrix products allow, "
        "and measure their memory.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = parser.add_argument
    option(
        "--size", choices=SIZES, default="small", help="model: small 24M weights, base 98M (default: small)"
    )
    option("--layers", type=positive_int, default=12, metavar="L", help="number of layers (default: 12)")
    option("--length", type=positive_int, default=128, metavar="T", help="tokens per row (default: 128)")
    option("--batch", type=positive_int, default=32, metavar="N", help="rows per micro-batch (default: 32)")
    option("--precision", choices=DTYPES, default="fp32", help="precision (default: fp32)")
    option("--kernels", choices=("auto", "fused", "plain"), default="auto", help="kernels (default: auto)")
    option("--compile", action="store_true", help="use torch.compile where there is no fast path")
    option("--compare", action="store_true", help="also take every step with the plain, eager definitions")
    option(
        "--data",
        type=Path,
        metavar="PREFIX",
        help="dataset of real samples, measured packed and padded (default: random full rows)",
    )
    option(
        "--micro-batches",
        type=positive_int,
        default=4,
        metavar="M",
        help="with --data: a step has M x N samples, for packing in fewer micro-batches (default: 4)",
    )
    option("--memory-only", action="store_true", help="measure memory, not time")
    option("--rounds", type=positive_int, default=5, metavar="N", help="steps per candidate (default: 5)")
    cores = available_cores()
    option(
        "--threads", type=positive_int, default=cores, metavar="N", help="CPU threads (default: all cores)"
    )
    option("--device", choices=("auto", "cpu", "cuda"), default="auto", help="device (default: auto)")
    option("--picture", type=Path, metavar="FILE", help="also draw where the time goes (PNG)")
    add_json(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(report_to_user("train.py", parse_arguments(sys.argv[1:]), measure_and_draw))
