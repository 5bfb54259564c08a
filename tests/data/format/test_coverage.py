"""Text that no segment contains is counted exactly, and reported by every command."""

import json
import random
import sys

import numpy as np
import pytest

from data_tools.__main__ import main
from data_tools.verify import verify
from elc_bert.data.format.coverage import Coverage, unread_warning
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.manifest import Manifest, SegmentsEntry
from elc_bert.data.format.segments import POLICY, build_segments, open_segments, with_unread
from tests.data.format import foreign


def dataset_of(prefix, documents) -> IndexedDataset:
    """Write a dataset whose documents have sentences of the given lengths."""
    sizes = [size for document in documents for size in document]
    sentences = [[7] * size for size in sizes]
    foreign.write(prefix, sentences, np.cumsum([0, *map(len, documents)]).tolist(), code=4)
    return IndexedDataset(prefix)


@pytest.mark.parametrize(
    ("documents", "unread"),
    [
        ([[14]], 0),  # T - 2
        ([[15]], 1),  # T - 1
        ([[16]], 2),
        ([[3, 14]], 0),
        ([[3, 15]], 1),
        ([[15, 3]], 1),
        ([[3, 15, 3]], 1),
        ([[14, 14, 14]], 0),
        ([[15], [15]], 2),
        ([[100], [14]], 86),
        ([[5, 100, 5], [20]], 86 + 6),
    ],
)
def test_the_rest_of_a_sentence_of_more_than_t_minus_2_tokens_is_unread(documents, unread, tmp_path):
    dataset = dataset_of(tmp_path / "d", documents)
    assert build_segments(dataset, 16).unread == unread
    assert dataset.manifest.find_segments(16, POLICY).unread == unread
    assert build_segments(dataset, 16, "packed").unread == 0


def test_unread_tokens_are_those_in_no_segment(tmp_path):
    seed = random.randrange(sys.maxsize)
    print(f"seed {seed}")
    draw = random.Random(seed)
    for number in range(30):
        documents = [
            [draw.choice((0, 1, 5, 13, 14, 15, 40)) for _ in range(draw.randint(1, 9))] for _ in range(5)
        ]
        documents.append([1])
        dataset = dataset_of(tmp_path / f"d{number}", documents)
        for policy in ("reference", "packed"):
            entry = build_segments(dataset, 16, policy)
            index = open_segments(dataset, 16, policy)
            is_read = np.zeros(dataset.num_tokens, dtype=bool)
            for offset, length in zip(*index(np.arange(len(index))), strict=True):
                is_read[offset : offset + length] = True
            assert entry.unread == np.count_nonzero(~is_read)


def test_segments_may_be_added_in_parts():
    offsets, lengths = np.array([0, 0, 3, 9, 9, 20]), np.array([5, 5, 4, 2, 3, 1], dtype=np.int32)
    for cut in range(7):
        coverage = Coverage()
        coverage.add(offsets[:cut], lengths[:cut])
        coverage.add(offsets[cut:], lengths[cut:])
        assert coverage.covered == 7 + 3 + 1


def test_the_count_of_an_early_dataset_is_computed(tmp_path, monkeypatch):
    dataset = dataset_of(tmp_path / "d", [[5, 100, 5], [20]])
    entry = build_segments(dataset, 16)
    early = entry.model_copy(update={"unread": None})
    assert "unread" not in json.loads(early.model_dump_json())
    dataset.manifest.with_segments(early).save(dataset.prefix)
    text = Manifest.path(dataset.prefix).read_text()
    assert '"unread"' not in text
    monkeypatch.setattr("elc_bert.data.format.segments.CHUNK_SIZE", 2)
    assert with_unread(dataset, dataset.manifest.segments[0]) == entry
    assert build_segments(dataset, 16) == entry
    assert Manifest.path(dataset.prefix).read_text() == text  # nothing is written for it


@pytest.mark.parametrize(
    ("unread", "warns"), [(0, False), (10, False), (11, True), (1000, True), (None, False)]
)
def test_more_than_one_percent_is_a_warning(unread, warns, tmp_path):
    entry = SegmentsEntry(
        sequence_length=64, policy=POLICY, file="d", count=1, tokens=1, sha256="0" * 64, unread=unread
    )
    warning = unread_warning(tmp_path / "d", entry, 1000)
    assert (warning is not None) == warns
    if warning is not None:
        assert f"data_tools segments {tmp_path}/d --lengths 64 --policy packed" in warning
        assert f"{unread / 1000:.1%}" in warning


@pytest.mark.parametrize(
    ("document", "share", "warns"), [([*[14] * 99, 15], "0.07%", False), ([14, 42], "50.00%", True)]
)
def test_the_commands_report_unread_text(document, share, warns, tmp_path, capsys):
    prefix = tmp_path / "d"
    dataset_of(prefix, [document])
    for arguments in (["segments", "--lengths", "16"], ["inspect"], ["verify"]):
        assert main([arguments[0], str(prefix), *arguments[1:]]) == 0
        output = capsys.readouterr().out
        assert share in output, arguments
        assert ("warning" in output) == warns
        assert ("packed" in output) == warns


def test_verify_compares_the_count_with_the_manifest(tmp_path):
    dataset = dataset_of(tmp_path / "d", [[5, 100, 5]])
    entry = build_segments(dataset, 16)
    assert verify(dataset.prefix).problems == []
    wrong = entry.model_copy(update={"unread": 3})
    dataset.manifest.with_segments(wrong).save(dataset.prefix)
    (problem,) = verify(dataset.prefix).problems
    assert f"leaves out {entry.unread} tokens, but the manifest says 3" in problem
