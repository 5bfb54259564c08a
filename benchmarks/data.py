"""Benchmark of building, masking and opening datasets against peers in the same run; see ``--help``."""

import argparse
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from reporting import add_json, report_to_user
from tokenizers import Tokenizer
from torch.utils.data import default_collate
from tqdm import tqdm

from data_tools.input_files import find_input_files
from data_tools.text_reader import read_paragraphs
from elc_bert.config.length_schedule import LengthSchedule
from elc_bert.data.format.indexed import HEADER, MAGIC, VERSION, IndexedDataset
from elc_bert.data.format.manifest import Manifest
from elc_bert.data.format.segments import SegmentIndex, build_segments, open_segments
from elc_bert.data.format.vocabulary import CLS, MASK, PAD, PAR, SEP, TAB, load_tokenizer
from elc_bert.data.sampling.blend import Portion
from elc_bert.data.sampling.masking import Masking
from elc_bert.data.sampling.steps import TrainingSteps
from elc_bert.utils.errors import UserError
from elc_bert.utils.machine import available_cores
from elc_bert.utils.options import positive_int

ROOT = Path(__file__).resolve().parents[1]
LINES_PER_BATCH = 10_000
"""Number of paragraphs in a call of ``encode_batch``."""
NOT_PREDICTED = -100
"""Label of tokens without a prediction."""
SHAPES = ((128, 256), (512, 64))
"""Sequence lengths and micro-batch sizes, with the same number of tokens each."""
OUR_BATCHES, PEER_BATCHES = 40, 4
"""Number of batches measured in a round."""
SMALL, LARGE = 10**6, 10**10
"""Number of tokens of the datasets to open."""
SPARSE_LENGTH, SPARSE_SENTENCE = 512, 1000
"""Sequence length and sentence length of the datasets to open."""

EPILOG = """what is measured:
  build      tokens per second of the whole command data_tools build, compared with encode_batch of the
             tokenizers library on the same paragraphs in memory, on all cores
  batches    real tokens per second of masked batches in one process on one core, compared with the same
             masking in torch, one sample at a time as in a dataset's __getitem__, and default_collate
  opening    time to open a dataset of 10^6 and of 10^10 tokens (a sparse .bin with complete tables) and to
             read the first batch, and memory growth of the process while it reads 1,000 batches
  Rounds of both alternate; all figures are medians over the rounds.

examples:
  make demo && python benchmarks/data.py
  python benchmarks/data.py --text corpus/train --tokenizer tokenizer.json --rounds 5 --json data.json
"""


# ---- building --------------------------------------------------------------------------------


def encode_batch_seconds(tokenizer: Tokenizer, paragraphs: list[str]) -> tuple[float, int]:
    """Measure the library's batch encoding of text in memory; return seconds and number of tokens."""
    start, tokens = time.perf_counter(), 0
    for first in range(0, len(paragraphs), LINES_PER_BATCH):
        batch = tokenizer.encode_batch(paragraphs[first : first + LINES_PER_BATCH], add_special_tokens=False)
        tokens += sum(len(each) for each in batch)
    return time.perf_counter() - start, tokens


def build_seconds(text: Path, tokenizer: Path, prefix: Path) -> float:
    """Return the run time of the command, with process start and segments."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "data_tools", "build", "--overwrite"]
    paths = ["--input", text, "--tokenizer", tokenizer, "--output", prefix]
    subprocess.run([*command, *map(str, paths)], check=True, cwd=ROOT, capture_output=True)
    return time.perf_counter() - start


def measure_build(text: Path, tokenizer_path: Path, prefix: Path, rounds: int, bar: tqdm) -> dict[str, float]:
    """Return the tokens per second of the build command and of ``encode_batch``."""
    tokenizer = load_tokenizer(tokenizer_path)
    paragraphs = list(read_paragraphs(find_input_files([text]).files))
    theirs, ours = [], []
    for _ in range(rounds):
        seconds, tokens = encode_batch_seconds(tokenizer, paragraphs)
        theirs.append(tokens / seconds)
        bar.update()
        seconds = build_seconds(text.resolve(), tokenizer_path.resolve(), prefix)
        ours.append(IndexedDataset(prefix).num_tokens / seconds)
        bar.update()
    return {"build": statistics.median(ours), "encode_batch": statistics.median(theirs)}


# ---- batches ---------------------------------------------------------------------------------


def per_sample_torch(
    dataset: IndexedDataset,
    segments: SegmentIndex,
    sample: int,
    sequence_length: int,
    vocab_size: int,
    masking: Masking,
) -> dict[str, torch.Tensor]:
    """Return one masked sample, computed as in the ``__getitem__`` of a typical torch dataset."""
    (offset,), (length,) = segments(np.array([sample]))
    segment = torch.from_numpy(dataset.gather(np.arange(offset, offset + length)).astype(np.int64))
    if torch.rand(()).item() < masking.short_p:
        segment = segment[: int(torch.randint(1, sequence_length - 2, ()))]
    tokens = torch.cat([torch.tensor([CLS]), segment, torch.tensor([SEP])])

    inputs, labels = tokens.clone(), torch.full_like(tokens, NOT_PREDICTED)
    maskable = tokens >= TAB
    masked = torch.zeros_like(maskable)
    number_to_mask = torch.binomial(maskable.sum().float(), torch.tensor(masking.mask_p))
    for _ in range(100):
        if masked.sum() >= number_to_mask:
            break
        size = int(torch.empty(()).geometric_(1 / 3)) % 10
        first = int(torch.randint(1 - size, len(tokens) + size, ()))
        span = torch.zeros_like(maskable)
        span[max(first, 0) : max(first + size, 0)] = True
        span &= maskable
        kind = torch.rand(()).item()
        if kind < masking.random_p:
            inputs[span] = torch.randint(PAR, vocab_size, (int(span.sum()),))
        elif kind < masking.random_p + masking.keep_p:
            inputs[span] = tokens[span]
        else:
            inputs[span] = MASK
        masked |= span
    labels[masked] = tokens[masked]

    padding = (0, sequence_length - len(tokens))
    return {
        "input_ids": torch.nn.functional.pad(inputs, padding, value=PAD),
        "attention_mask": torch.nn.functional.pad(torch.ones_like(maskable), padding),
        "labels": torch.nn.functional.pad(labels, padding, value=NOT_PREDICTED),
    }


def peer_rate(prefix: Path, sequence_length: int, micro_batch: int, vocab_size: int) -> float:
    """Return the tokens per second of the torch implementation."""
    dataset = IndexedDataset(prefix)
    segments = open_segments(dataset, sequence_length)
    order = torch.randperm(len(segments))
    start, tokens = time.perf_counter(), 0
    for samples in torch.split(order, micro_batch)[:PEER_BATCHES]:
        batch = default_collate(
            [
                per_sample_torch(dataset, segments, int(sample), sequence_length, vocab_size, Masking())
                for sample in samples
            ]
        )
        tokens += int(batch["attention_mask"].sum())
    return tokens / (time.perf_counter() - start)


def make_steps(prefix: Path, sequence_length: int, micro_batch: int, vocab_size: int) -> TrainingSteps:
    """Return training steps of one micro-batch each."""
    return TrainingSteps(
        [Portion(prefix)],
        LengthSchedule(1 << 20, sequence_length, micro_batch, long_after=1.0),
        seed=42,
        masking=Masking(),
        vocab_size=vocab_size,
        rank=0,
        world_size=1,
        micro_batch_of=lambda _: micro_batch,
    )


def our_rate(prefix: Path, sequence_length: int, micro_batch: int, vocab_size: int) -> float:
    """Return the tokens per second of this project."""
    steps = make_steps(prefix, sequence_length, micro_batch, vocab_size)
    start = time.perf_counter()
    tokens = sum(micro.tokens for step in range(OUR_BATCHES) for micro in steps[step])
    return tokens / (time.perf_counter() - start)


def measure_batches(prefix: Path, vocab_size: int, rounds: int, bar: tqdm) -> dict[str, dict[str, float]]:
    """Return the tokens per second of both implementations, by sequence length."""
    torch.set_num_threads(1)
    found = {}
    for sequence_length, micro_batch in SHAPES:
        ours, theirs = [], []
        for _ in range(rounds):
            ours.append(our_rate(prefix, sequence_length, micro_batch, vocab_size))
            theirs.append(peer_rate(prefix, sequence_length, micro_batch, vocab_size))
            bar.update()
        found[str(sequence_length)] = {"ours": statistics.median(ours), "torch": statistics.median(theirs)}
    return found


# ---- opening ---------------------------------------------------------------------------------


def write_sparse(prefix: Path, tokens: int) -> None:
    """Write a dataset of ``tokens`` tokens ``[UNK]`` as a sparse file, with complete tables."""
    sequences = tokens // SPARSE_SENTENCE
    with open(f"{prefix}.bin", "wb") as file:
        file.truncate(2 * tokens)
    with open(f"{prefix}.idx", "wb") as file:
        file.write(HEADER.pack(MAGIC, VERSION, 8, sequences, sequences + 1))
        np.full(sequences, SPARSE_SENTENCE, dtype="<i4").tofile(file)
        (np.arange(sequences, dtype="<i8") * 2 * SPARSE_SENTENCE).tofile(file)
        np.arange(sequences + 1, dtype="<i8").tofile(file)
    Manifest(sequences=sequences, documents=sequences, tokens=tokens).save(prefix)
    build_segments(IndexedDataset(prefix), SPARSE_LENGTH)


def open_and_read(prefix: Path) -> tuple[float, float, float]:
    """Return seconds to open a dataset and to read its first batch, and growth of the process in bytes."""
    batch = 64
    make_steps(prefix, SPARSE_LENGTH, batch, 512)[0]  # warm up imports and allocations
    start = time.perf_counter()
    steps = make_steps(prefix, SPARSE_LENGTH, batch, 512)
    opened = time.perf_counter()
    _ = steps[0]
    read = time.perf_counter()
    before = psutil.Process().memory_info().rss
    for step in range(1000):
        _ = steps[step]
    return opened - start, read - opened, psutil.Process().memory_info().rss - before


def measure_opening(folder: Path, rounds: int, bar: tqdm) -> dict[str, dict[str, float]]:
    """Return the figures of ``open_and_read`` by size of the dataset, each measured in a new process."""
    prefixes = {tokens: folder / f"sparse-{tokens}" for tokens in (SMALL, LARGE)}
    for tokens, prefix in prefixes.items():
        write_sparse(prefix, tokens)
        bar.update()
    found: dict[int, list[tuple[float, float, float]]] = {tokens: [] for tokens in prefixes}
    for _ in range(rounds):
        for tokens, prefix in prefixes.items():
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found[tokens].append(pool.apply(open_and_read, (prefix,)))
            bar.update()
    names = ("open_seconds", "first_batch_seconds", "growth_bytes")
    return {
        f"{tokens:.0e}": dict(
            zip(names, (statistics.median(each) for each in zip(*figures, strict=True)), strict=True)
        )
        for tokens, figures in found.items()
    }


# ---- the report ------------------------------------------------------------------------------


@dataclass
class Report:
    """Results of the benchmark."""

    cores: int
    """Number of available cores."""
    build: dict[str, float]
    """Tokens per second of the build command and of ``encode_batch``."""
    batches: dict[str, dict[str, float]]
    """Tokens per second of both implementations on one core, by sequence length."""
    opening: dict[str, dict[str, float]]
    """Figures of ``open_and_read``, by number of tokens."""

    def lines(self) -> list[str]:
        """Return the results as the lines of a table."""
        build = self.build
        lines = [
            f"build, {self.cores} cores               tokens/s",
            f"  tokenizers' encode_batch     {build['encode_batch']:12,.0f}",
            f"  data_tools build             {build['build']:12,.0f}   "
            f"{build['build'] / build['encode_batch']:.2f} x encode_batch",
            "",
            "masked batches, 1 core         tokens/s",
        ]
        for length, rates in self.batches.items():
            lines += [
                f"  T = {length}, per sample in torch {rates['torch']:11,.0f}",
                f"  T = {length}, ours                {rates['ours']:11,.0f}   "
                f"{rates['ours'] / rates['torch']:.0f} x per sample",
            ]
        lines += ["", "tokens      open, ms   first batch, ms   growth over 1,000 batches, MiB"]
        lines += [
            f"{tokens:<10}{1e3 * each['open_seconds']:10.2f}{1e3 * each['first_batch_seconds']:18.2f}"
            f"{each['growth_bytes'] / 2**20:20.1f}"
            for tokens, each in self.opening.items()
        ]
        return lines


def benchmark(arguments: argparse.Namespace) -> Report:
    """Run all measurements."""
    for name in ("text", "tokenizer"):
        path = getattr(arguments, name)
        if not path.exists():
            raise UserError(f'{path}: no such file; create it with "make demo", or give --{name}')
    rounds = arguments.rounds
    with (
        tempfile.TemporaryDirectory(dir=arguments.folder) as folder,
        tqdm(total=2 * rounds + len(SHAPES) * rounds + 2 + 2 * rounds, disable=None, leave=False) as bar,
    ):
        prefix = Path(folder) / "built"
        return Report(
            cores=available_cores(),
            build=measure_build(arguments.text, arguments.tokenizer, prefix, rounds, bar),
            batches=measure_batches(
                prefix, load_tokenizer(arguments.tokenizer).get_vocab_size(), rounds, bar
            ),
            opening=measure_opening(Path(folder), rounds, bar),
        )


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="data.py",
        description="Measure building, masking and opening of datasets against peers.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    demo = ROOT / "data" / "demo"
    option = parser.add_argument
    path = {"type": Path, "metavar": "PATH"}
    option("--text", **path, default=demo / "train.txt", help="text to build from (default: the demo's text)")
    option("--tokenizer", **path, default=demo / "tokenizer.json", help="tokenizer (default: the demo's)")
    option("--rounds", type=positive_int, default=5, metavar="N", help="number of rounds (default: 5)")
    option("--folder", **path, help="directory for about 600 MB of temporary files (default: $TMPDIR)")
    add_json(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(report_to_user("data.py", parse_arguments(sys.argv[1:]), benchmark))
