"""Datasets of other programs can be read, and other programs can read the datasets of this project."""

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.verify import verify
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.segments import build_segments, open_segments
from elc_bert.data.format.writer import IndexedDatasetWriter
from tests.data.format import foreign


def documents_of(dataset):
    """Read all documents through the checked methods."""
    bounds = dataset.documents_between(0, len(dataset.documents) - 1)
    spans = np.stack(dataset.spans(0, len(dataset.lengths)), axis=1).tolist()
    sentences = [dataset.tokens[place : place + size].tolist() for place, size in spans]
    return [sentences[a:b] for a, b in pairwise(bounds)]


def ids(count, vocab_size):
    return random.Random(count).choices(range(vocab_size), k=count)


def test_a_dataset_of_megatron_opens(tmp_path):
    """Cover several sentences per document, empty documents and a sentence without tokens."""
    sequences = [ids(n, 50_000) for n in (5, 0, 40, 7, 3)]
    foreign.write(tmp_path / "m", sequences, [0, 0, 3, 3, 4, 5, 5], code=8)
    dataset = IndexedDataset(tmp_path / "m")
    assert documents_of(dataset) == [[], sequences[:3], [], sequences[3:4], sequences[4:], []]
    assert (dataset.manifest.documents, dataset.manifest.sequences, dataset.manifest.tokens) == (6, 5, 55)
    for policy in ("reference", "packed"):
        build_segments(dataset, 12, policy)
    assert len(open_segments(dataset, 12, "packed")) == 6
    assert verify(tmp_path / "m").problems == []


@pytest.mark.parametrize(("vocab_size", "code", "dtype"), [(50_254, 8, np.uint16), (65_500, 4, np.int32)])
def test_a_dataset_of_gpt_neox_opens(tmp_path, vocab_size, code, dtype):
    """Cover one sequence per document, and two bytes per token only for vocabularies below 65,500."""
    sequences = [ids(n, vocab_size) for n in (90, 4, 300)]
    foreign.write(tmp_path / "n", sequences, [0, 1, 2, 3], code)
    dataset = IndexedDataset(tmp_path / "n")
    assert documents_of(dataset) == [[sequence] for sequence in sequences]
    assert dataset.tokens.dtype == dtype
    report = verify(tmp_path / "n")
    assert report.problems == []
    assert "manifest" in dict(report.not_checked)
    build_segments(dataset, 128)
    assert verify(tmp_path / "n").problems == []
    assert foreign.read(tmp_path / "n") == documents_of(dataset)


@pytest.mark.parametrize("code", foreign.ARRAY_CODES)
def test_every_integer_type_of_the_format_opens(tmp_path, code):
    foreign.write(tmp_path / "d", [[1, 2], [127, 0, 3]], [0, 2], code)
    assert documents_of(IndexedDataset(tmp_path / "d")) == [[[1, 2], [127, 0, 3]]]


def test_non_contiguous_sequences_can_be_read(tmp_path):
    (tmp_path / "d.bin").write_bytes(bytes([9, 1, 2, 9, 3]))
    (tmp_path / "d.idx").write_bytes(foreign.index_bytes(1, [1, 2], [4, 1], [0, 1, 2]))
    assert documents_of(IndexedDataset(tmp_path / "d")) == [[[3]], [[1, 2]]]
    assert "sentence 0 begins at token 4" in verify(tmp_path / "d").problems[0]


SENTENCE = st.lists(st.integers(0, 65_535), min_size=1, max_size=5)


@settings(deadline=None)  # every example waits for the disk
@given(
    documents=st.lists(st.lists(SENTENCE, min_size=1, max_size=4), min_size=1, max_size=5),
    dtype=st.sampled_from([np.uint16, np.int32, np.int64]),
)
def test_other_programs_read_datasets_of_this_project(tmp_path_factory, documents, dtype):
    prefix = tmp_path_factory.mktemp("d") / "d"
    with IndexedDatasetWriter(prefix, np.dtype(dtype)) as writer:
        for document in documents:
            writer.add_document(document)
    assert foreign.read(prefix) == documents == documents_of(IndexedDataset(prefix))


def test_other_programs_read_segments_of_this_project(tiny_dataset):
    index = open_segments(IndexedDataset(tiny_dataset), 32)
    ours = np.stack(index(np.arange(len(index))), axis=1).tolist()
    assert list(map(list, foreign.read_segments(tiny_dataset.with_name("tiny.segments-32.npy")))) == ours
