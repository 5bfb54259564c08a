import json
import pickle
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.build import build_dataset
from elc_bert.data import segments
from elc_bert.data.indexed import IndexedDataset
from elc_bert.data.segments import SEGMENT, build_segments, open_segments, reference_segments
from elc_bert.errors import UserError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/segments.json").read_text(encoding="utf-8"))
GOLDEN_SEGMENTS = GOLDEN["segments_by_tokenizer_and_sequence_length"]


@pytest.mark.parametrize("case", GOLDEN_SEGMENTS)
def test_segments_are_those_of_the_reference(case, shared, tmp_path):
    tokenizer, length = case.split(":")
    text = tmp_path / "text.txt"
    text.write_text(GOLDEN["segmented_text"], encoding="utf-8")
    build_dataset(
        [text], shared / "tokenizers" / tokenizer, tmp_path / "d", lengths=[int(length)], sentences="lines"
    )
    dataset = IndexedDataset(tmp_path / "d")
    index = open_segments(dataset, int(length))
    slices = zip(*index(np.arange(len(index))), strict=True)
    assert [dataset.tokens[a : a + n].tolist() for a, n in slices] == GOLDEN_SEGMENTS[case]


def segments_plainly(documents, limit):
    """The policy as it is told, on lists of tokens."""
    result = []
    for sentences in documents:
        segment = []
        for sentence in sentences:
            segment = segment + sentence
            if len(segment) > limit:
                result.append(segment[:limit])
                segment = sentence
        if segment:
            result.append(segment[:limit])
    return result


@given(
    sizes=st.lists(st.lists(st.integers(0, 12), max_size=8), min_size=1, max_size=5),
    limit=st.integers(1, 15),
)
def test_segments_are_those_of_the_policy(sizes, limit):
    starts = np.cumsum([0, *(size for document in sizes for size in document)])
    stream = list(range(starts[-1]))
    sentences = [stream[a:b] for a, b in pairwise(starts)]
    first = np.cumsum([0, *map(len, sizes)])
    documents = [sentences[a:b] for a, b in pairwise(first)]
    found = reference_segments(starts, first, limit)
    assert [stream[a : a + n] for a, n in found.tolist()] == segments_plainly(documents, limit)


def test_parts_of_a_large_dataset_join_without_a_seam(tiny_dataset, monkeypatch):
    dataset = IndexedDataset(tiny_dataset)
    whole = np.concatenate(list(segments._segments_in_parts(dataset, 30)))
    monkeypatch.setattr(segments, "SENTENCES_AT_ONCE", 3)
    parts = list(segments._segments_in_parts(dataset, 30))
    assert len(parts) == 40
    assert np.array_equal(np.concatenate(parts), whole)


@pytest.fixture
def dataset(tiny_dataset, tmp_path):
    for path in tiny_dataset.parent.glob("tiny.*"):
        shutil.copy(path, tmp_path)
    return IndexedDataset(tmp_path / "tiny")


def test_the_index_is_a_plain_npy_file_described_in_the_manifest(dataset):
    entry = dataset.manifest.find_segments(32, "reference")
    array = np.load(dataset.prefix.with_name(entry.file), allow_pickle=False)
    assert array.dtype == SEGMENT
    assert len(array) == entry.count == len(open_segments(dataset, 32))
    assert array["length"].sum() == entry.tokens
    assert entry.policy == "reference"


def test_another_length_is_added_and_the_others_stay(dataset):
    with pytest.raises(UserError, match=r"run: python -m data_tools segments .*tiny --lengths 64$"):
        open_segments(dataset, 64)
    build_segments(dataset, 64)
    assert [entry.sequence_length for entry in dataset.manifest.segments] == [32, 64, 128]
    assert len(open_segments(dataset, 64)) > 0


def test_a_valid_index_is_left_alone_and_a_damaged_one_mended(dataset):
    path = dataset.prefix.with_name(dataset.manifest.find_segments(32, "reference").file)
    before = path.stat().st_mtime_ns
    build_segments(dataset, 32)
    assert path.stat().st_mtime_ns == before
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    build_segments(dataset, 32)
    assert path.read_bytes() == content


def test_damaged_indexes_are_user_errors(dataset):
    path = dataset.prefix.with_name(dataset.manifest.find_segments(32, "reference").file)
    array = np.load(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="cannot open the segment index"):
        open_segments(dataset, 32)
    np.save(path, array[:-1])
    with pytest.raises(UserError, match=r"\d+ segments, but the manifest says \d+"):
        open_segments(dataset, 32)
    np.save(path, array["offset"])
    with pytest.raises(UserError, match="not a segment index"):
        open_segments(dataset, 32)
    path.unlink()
    with pytest.raises(UserError, match="No such file"):
        open_segments(dataset, 32)


@pytest.mark.parametrize("bad", [(-1, 5), (10**9, 5), (0, 0), (0, 10**9)])
def test_slices_outside_of_the_stream_are_found_when_read(dataset, bad):
    path = dataset.prefix.with_name(dataset.manifest.find_segments(32, "reference").file)
    array = np.load(path)
    array[3] = bad
    np.save(path, array)
    index = open_segments(dataset, 32)
    index(np.array([0, 1, 2]))
    with pytest.raises(UserError, match="segment 3 lies outside"):
        index(np.array([2, 3]))


def test_a_pickled_index_opens_its_file_again(dataset):
    index = open_segments(dataset, 32)
    again = pickle.loads(pickle.dumps(index))
    assert np.array_equal(again(np.arange(5)), index(np.arange(5)))
