"""The command ``inspect``, and the histograms that it shows."""

import random
import re
from itertools import pairwise
from unittest import mock

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools import dataset_stream
from data_tools.__main__ import main
from data_tools.histogram import (
    LengthCounts,
    doubling_bin_starts,
    linear_bin_starts,
    make_bins,
    text_histogram,
)
from data_tools.inspect import count_lengths, document_text
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.segments import open_segments
from elc_bert.data.format.vocabulary import load_tokenizer
from tests.data.format import foreign
from tests.data_tools.running import assert_fails, assert_rejected, run

LENGTHS = st.lists(st.integers(0, 50) | st.integers(0, 2**31 - 1), min_size=1, max_size=60)


def counted(*parts) -> LengthCounts:
    lengths = LengthCounts()
    for part in parts:
        lengths.add(np.array(part, dtype=np.int64))
    return lengths


@given(parts=st.lists(LENGTHS, min_size=1, max_size=4))
def test_lengths_are_counted_exactly(parts):
    whole = np.concatenate(parts).astype(np.int64)
    lengths = counted(*parts)
    assert np.array_equal(np.repeat(lengths.values, lengths.counts), np.sort(whole))
    assert lengths.mean() == pytest.approx(whole.mean())
    percents = [1, 10, 50, 90, 99, 100]
    assert lengths.quantiles(percents) == [
        np.sort(whole)[-(-percent * len(whole) // 100) - 1] for percent in percents
    ]


@given(part=LENGTHS)
def test_each_length_is_in_one_bin(part):
    for starts_of in (doubling_bin_starts, linear_bin_starts):
        lengths = counted(part)
        bins = make_bins(lengths, starts_of(lengths))
        assert [sum(each.low <= length <= each.high for length in part) for each in bins] == [
            each.number for each in bins
        ]
        assert sum(each.number for each in bins) == len(part)
        assert all(each.low <= each.high for each in bins)
        assert all(one.high + 1 == other.low for one, other in pairwise(bins))
        assert max(map(len, text_histogram("title", bins))) <= 80


def test_a_text_histogram():
    lengths = counted([1] * 1, [2, 3] * 4, [4, 5, 6, 7], [9])
    assert text_histogram("lengths", make_bins(lengths, doubling_bin_starts(lengths))) == [
        "lengths",
        "    1  1  █████",
        "2 - 3  8  ████████████████████████████████████████",
        "4 - 7  4  ████████████████████",
        "8 - 9  1  █████",
    ]


def test_lengths_that_are_all_equal_have_one_bin():
    lengths = counted([50_000] * 3)
    assert make_bins(lengths, linear_bin_starts(lengths)) == [(50_000, 50_000, 3)]


def test_the_last_bin_of_equal_width_holds_the_tail():
    lengths = counted(range(1, 31), [10**6] * 0, [4] * 1000, [5000])
    bins = make_bins(lengths, linear_bin_starts(lengths))
    assert len(bins) <= 16
    assert bins[-1].high == 5000
    assert len({each.high - each.low for each in bins[:-1]}) == 1


@pytest.mark.parametrize("at_once", [1, 3, 1 << 20])
def test_lengths_of_documents_and_sentences(tmp_path, at_once):
    sentences = [[1] * length for length in (3, 1, 4, 1, 5)]
    foreign.write(tmp_path / "d", sentences, [0, 0, 2, 5], 8)
    with mock.patch.object(dataset_stream, "SENTENCES_AT_ONCE", at_once):
        documents, lengths = count_lengths(IndexedDataset(tmp_path / "d"))
    assert documents.values.tolist() == [0, 4, 10]
    assert documents.counts.tolist() == [1, 1, 1]
    assert lengths.values.tolist() == [1, 3, 4, 5]
    assert lengths.counts.tolist() == [2, 1, 1, 1]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.replace("[PAR]", " "))


def test_a_segment_is_shown_as_the_text_that_training_reads(capsys, tiny_tokenizer, tiny_dataset):
    """The first segments of 32 tokens begin with the first document."""
    document = document_text(IndexedDataset(tiny_dataset), load_tokenizer(tiny_tokenizer), 0, whole=True)
    options = ("--tokenizer", tiny_tokenizer, "--length", 32)
    assert main(["inspect", str(tiny_dataset), *map(str, options), "--segment", "0"]) == 0
    title, *lines = capsys.readouterr().out.strip().splitlines()
    assert re.fullmatch("segment 0: [0-9]+ tokens from position 0", title)
    found = words(" ".join(lines))
    assert 5 < len(found) < 31
    assert found == words(" ".join(document[1:]))[: len(found)]
    last = len(open_segments(IndexedDataset(tiny_dataset), 32)) - 1
    assert_fails(
        capsys,
        ("inspect", tiny_dataset, *options, "--segment", last + 1),
        f"--segment {last + 1}: ",
        f"0 to {last}",
    )


def test_a_document_is_shown_as_the_text_that_it_was_built_from(tiny_text, tiny_tokenizer, tiny_dataset):
    dataset, tokenizer = IndexedDataset(tiny_dataset), load_tokenizer(tiny_tokenizer)
    texts = tiny_text.read_text(encoding="utf-8").split("\n\n")
    for document in (0, 7, 39):
        title, *lines = document_text(dataset, tokenizer, document, whole=True)
        assert title.startswith(f"document {document}: ")
        assert words(" ".join(lines)) == words(texts[document])
        assert " ".join(lines).count("[PAR]") == texts[document].strip().count("\n") + 1
        beginning = words(" ".join(document_text(dataset, tokenizer, document, whole=False)[1:]))
        assert beginning == words(texts[document])[: len(beginning)]
        assert len(beginning) < 60 + 14 + 1


def test_inspect_prints_tables_and_documents_and_draws_a_picture(
    capsys, tiny_tokenizer, tiny_dataset, tmp_path
):
    tokenizer = "--tokenizer", tiny_tokenizer
    done = run("inspect", tiny_dataset, *tokenizer, "--picture", tmp_path / "new/lengths.png")
    assert done.returncode == 0, done.stderr
    manifest = IndexedDataset(tiny_dataset).manifest
    for expected in (
        rf"documents +{manifest.documents:,}\n",
        rf"tokens +{manifest.tokens:,}\n",
        rf"bytes of tokens \(uint16\) +{2 * manifest.tokens:,}\n",
        r"built with elc-bert ",
        r"tiny.txt",
        r"32 +reference +[\d,]+ +[\d,]+ +\d\d\.\d%",
        r"median +\d+ +\d+",
        r"documents by their tokens\n +\d+ - \d+ +\d+ +█",
        r"most frequent subwords among [\d,]+ tokens\n +\S+ +\d\d?\.\d\d%",
        r"unknown +0.0000%",
    ):
        assert re.search(expected, done.stdout), expected
    assert len(re.findall(r"  document \d+: ", done.stdout)) == 2
    lines = [line for line in done.stdout.splitlines() if "/" not in line]  # paths are not wrapped
    assert max(map(len, lines)) <= 80
    assert matplotlib.image.imread(tmp_path / "new/lengths.png").std() > 0

    def shown(*options) -> str:
        assert main(["inspect", str(tiny_dataset), "--tokenizer", str(tiny_tokenizer), *options]) == 0
        return capsys.readouterr().out

    assert shown("--full", "--seed", "0") == shown("--full") != shown("--full", "--seed", "1")
    assert len(re.findall(r"  document \d+: ", shown("--documents", "0"))) == 0


def test_user_errors_of_inspect_name_the_option_or_the_file(capsys, tiny_tokenizer, tiny_dataset, tmp_path):
    assert_fails(capsys, ("inspect", tmp_path / "none"), "none.idx: ")
    assert_fails(capsys, ("inspect", tiny_dataset, "--documents", 3), "--documents", "--tokenizer")
    assert_fails(capsys, ("inspect", tiny_dataset, "--segment", 3), "--segment: ", "--tokenizer", "--length")
    changed = tmp_path / "tokenizer.json"
    text = tiny_tokenizer.read_text(encoding="utf-8")
    changed.write_text(
        text.replace('"normalizer":null', '"normalizer":{"type":"Lowercase"}'), encoding="utf-8"
    )
    assert_fails(capsys, ("inspect", tiny_dataset, "--tokenizer", changed), f"{changed}: ", str(tiny_dataset))
    foreign.write(tmp_path / "d", [[1, 2], [600]], [0, 1, 2], 8)
    assert_fails(capsys, ("inspect", tmp_path / "d", "--tokenizer", tiny_tokenizer), "600", "512")
    (tmp_path / "d.idx").write_bytes(foreign.index_bytes(8, [2, 1], [0, -2], [0, 1, 2]))
    assert_fails(capsys, ("inspect", tmp_path / "d"), "sentence 1")
    done = run("inspect", tiny_dataset, "--documents", -1)
    assert_rejected(done, "--documents", "-1")


def test_a_dataset_without_a_manifest_is_shown_as_far_as_it_is_known(capsys, tmp_path):
    draw = random.Random(0)
    sentences = [draw.choices(range(100), k=draw.randint(1, 9)) for _ in range(50)]
    foreign.write(tmp_path / "d", sentences, list(range(51)), 4)
    assert main(["inspect", str(tmp_path / "d")]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"words +unknown\n", shown)
    assert "no segment indexes" in shown
