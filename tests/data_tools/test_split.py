"""The command ``split``, which divides documents by their hashes."""

import hashlib
import random
import struct
from itertools import accumulate, chain, compress
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_tools import dataset_output, dataset_stream
from data_tools.dataset_stream import SentenceBatch
from data_tools.merge import merge_datasets
from data_tools.split import document_hashes, split_dataset
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.manifest import InputFile, Manifest
from elc_bert.data.format.segments import build_segments
from elc_bert.utils.errors import UserError
from tests.data.format import foreign
from tests.data_tools.running import assert_fails, run

SENTENCE = st.lists(st.integers(0, 30), min_size=1, max_size=5)
DOCUMENTS = st.lists(st.lists(SENTENCE, min_size=1, max_size=4), min_size=4, max_size=20)


def write(prefix: Path, documents: list[list[list[int]]], code: int = 8) -> Path:
    """Write a dataset without a manifest."""
    sentences = [sentence for document in documents for sentence in document]
    foreign.write(prefix, sentences, list(accumulate(map(len, documents), initial=0)), code)
    return prefix


def split(source: Path, dev_fraction: float, **options) -> tuple[list, list]:
    """Split a dataset and return the documents of both sides."""
    train, dev = source.with_name(f"{source.name}-train"), source.with_name(f"{source.name}-dev")
    split_dataset(source, train, dev, dev_fraction=dev_fraction, overwrite=True, **options)
    return foreign.read(train), foreign.read(dev)


def is_held_out(document: list[list[int]], dev_fraction: float, seed: int = 0) -> bool:
    """Return the result of the rule, which must never change: earlier splits must stay valid."""
    tokens = list(chain.from_iterable(document))
    data, key = struct.pack(f"<{len(tokens)}i", *tokens), struct.pack("<Q", seed)
    digest = hashlib.blake2b(data, digest_size=8, key=key).digest()
    return int.from_bytes(digest, "little") < dev_fraction * 2**64


@pytest.fixture(scope="module")
def corpus() -> list[list[list[int]]]:
    """3,000 distinct documents of one to five sentences."""
    draw = random.Random(0)
    return [
        [[number % 256, number // 256, *draw.choices(range(999), k=5)] for _ in range(draw.randint(1, 5))]
        for number in range(3000)
    ]


@settings(max_examples=25, deadline=None)
@given(documents=DOCUMENTS, seed=st.integers(0, 2**64 - 1), at_once=st.integers(1, 9))
def test_each_document_is_on_the_side_of_its_hash(tmp_path_factory, documents, seed, at_once):
    held_out = [is_held_out(document, 0.5, seed) for document in documents]
    assume(any(held_out) and not all(held_out))
    source = write(tmp_path_factory.mktemp("split") / "d", documents)
    with mock.patch.multiple(dataset_stream, SENTENCES_AT_ONCE=at_once, TOKENS_AT_ONCE=2 * at_once):
        train, dev = split(source, 0.5, seed=seed)
    assert dev == list(compress(documents, held_out))
    assert train == [document for document, held in zip(documents, held_out, strict=True) if not held]


def test_splitting_and_merging_commute(tmp_path, corpus):
    inputs = [write(tmp_path / "a", corpus[:1000]), write(tmp_path / "b", corpus[1000:], code=4)]
    parts = [split(source, 0.5) for source in inputs]  # the dtype does not matter either
    merge_datasets(inputs, tmp_path / "ab")
    train, dev = split(tmp_path / "ab", 0.5)
    assert train == parts[0][0] + parts[1][0]
    assert dev == parts[0][1] + parts[1][1]


def test_the_share_is_near_the_fraction(tmp_path, corpus):
    source = write(tmp_path / "d", corpus)
    for fraction in (0.02, 0.3):
        _, dev = split(source, fraction)
        deviation = (len(corpus) * fraction * (1 - fraction)) ** 0.5
        assert abs(len(dev) - len(corpus) * fraction) < 4 * deviation


def test_adding_documents_moves_none_of_the_others(tmp_path, corpus):
    _, dev_before = split(write(tmp_path / "d", corpus[:1000]), 0.1)
    _, dev = split(write(tmp_path / "d", corpus[::-1]), 0.1)
    assert [each for each in dev if each in corpus[:1000]] == dev_before[::-1]


def test_a_larger_fraction_only_adds_and_another_seed_draws_other_documents(tmp_path, corpus):
    source = write(tmp_path / "d", corpus)
    few, more, other = (
        {str(each) for each in split(source, fraction, seed=seed)[1]}
        for fraction, seed in ((0.1, 0), (0.2, 0), (0.1, 1))
    )
    assert few < more
    # A tenth of a tenth is in both by chance: 30 documents, give or take 5.4.
    assert 8 < len(few & other) < 52


def test_a_long_document_is_hashed_in_pieces():
    batch = SentenceBatch(np.arange(1000, dtype="<u2"), np.array([1000]), np.array([1]))
    with mock.patch("data_tools.split.TOKENS_AT_ONCE", 7):
        in_pieces = document_hashes(batch, seed=3)
    assert in_pieces == document_hashes(batch, seed=3)


def test_split_writes_two_datasets_with_manifests_and_refuses_bad_input(capsys, tmp_path, corpus):
    source = write(tmp_path / "all", corpus)
    Manifest(
        sequences=sum(map(len, corpus)),
        documents=len(corpus),
        tokens=IndexedDataset(source).num_tokens,
        words=12345,
        vocab_size=1000,
        tokenizer_sha256="a" * 64,
        tokenizer_fingerprint="b" * 64,
        inputs=[InputFile(path="a.txt", bytes=1, sha256="c" * 64)],
    ).save(source)
    build_segments(IndexedDataset(source), 32)
    build_segments(IndexedDataset(source), 16, "packed")
    train, dev = tmp_path / "out/train", tmp_path / "out/dev"
    outputs = "--output-train", train, "--output-dev", dev
    done = run("split", source, *outputs, "--dev-fraction", 0.1)
    assert done.returncode == 0, done.stderr
    sides = [IndexedDataset(each).manifest for each in (train, dev)]
    assert [f"{side.documents:,}" in done.stdout for side in sides] == [True, True]
    for side in sides:
        assert side.words is None  # cannot be computed from tokens
        assert (side.vocab_size, side.tokenizer_sha256, side.inputs[0].path) == (1000, "a" * 64, "a.txt")
        assert side.tokenizer_fingerprint == "b" * 64
        segments = [(each.policy, each.sequence_length) for each in side.segments]
        assert segments == [("packed", 16), ("reference", 32)]
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert set(written) == {
        f"{side}{suffix}"
        for side in ("train", "dev")
        for suffix in (".bin", ".idx", ".json", ".segments-32.npy", ".segments-16-packed.npy")
    }

    elsewhere = "--output-train", tmp_path / "out/x", "--output-dev", tmp_path / "out/y"
    assert_fails(
        capsys, ("split", source, "--output-train", tmp_path / "out/x", "--output-dev", dev), "--overwrite"
    )
    assert_fails(
        capsys,
        ("split", source, "--output-train", train, "--output-dev", train),
        f"{train}: ",
        "the other output",
    )
    assert_fails(
        capsys,
        ("split", source, "--output-train", source, "--output-dev", dev),
        f"{source}: ",
        f"the input {source}",
    )
    assert_fails(capsys, ("split", source, *elsewhere, "--dev-fraction", 2), "--dev-fraction: ", "2.0")
    assert_fails(
        capsys,
        ("split", source, *elsewhere, "--dev-fraction", 1e-9),
        "--dev-fraction 1e-09 ",
        "0 of 3000 documents",
    )
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == written


def test_if_the_second_side_fails_the_first_does_not_appear(tmp_path, corpus):
    source = write(tmp_path / "all", corpus)
    build = mock.Mock(side_effect=[None, UserError("no")])
    with mock.patch.object(dataset_output, "build_segments", build), pytest.raises(UserError, match="no"):
        split_dataset(source, tmp_path / "out/a", tmp_path / "out/b", dev_fraction=0.5, lengths=[8])
    assert list((tmp_path / "out").iterdir()) == []
