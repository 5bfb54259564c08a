"""Tests of all commands together, and of the commands that have no test file of their own."""

import json
import random
import re
import string
import sys

import numpy as np
import pytest

from data_tools.__main__ import COMMANDS
from data_tools.tokenizer import f95, train
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.text_with_masks import accept_special_tokens
from elc_bert.data.format.vocabulary import UNK, load_tokenizer
from elc_bert.utils.files import sha256_of
from tests.data_tools.running import assert_failed, assert_rejected, run


def build(text, tokenizer, prefix, *more):
    return run("build", "--input", text, "--tokenizer", tokenizer, "--output", prefix, "--workers", 1, *more)


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_texts_have_examples(name):
    done = run(*filter(None, [name]), "--help")
    assert done.returncode == 0
    assert f"  python -m data_tools {name or 'build'} " in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 110


def test_the_same_text_gives_the_same_tokenizer(tiny_text, tmp_path):
    for name in ("a.json", "b.json"):
        done = run(
            "tokenizer",
            "--input",
            tiny_text,
            "--vocab-size",
            400,
            "--min-frequency",
            2,
            "--output",
            tmp_path / name,
        )
        assert done.returncode == 0, done.stderr
        assert "400 subwords" in done.stdout
        assert "F95" in done.stdout
        assert "unknown 0.0000%" in done.stdout
    assert sha256_of(tmp_path / "a.json") == sha256_of(tmp_path / "b.json")
    tokenizer = load_tokenizer(tmp_path / "a.json")
    text = "Zebra 1987, naïve 漢字 🙂"
    assert tokenizer.decode(tokenizer.encode(text).ids) == " " + text
    assert {"1", "9", "8", "7"} <= set(tokenizer.encode(text).tokens)


def test_tokenizer_has_the_structure_of_the_published_ones(tiny_text, tiny_tokenizer, shared):
    published = load_tokenizer(shared / "tokenizers/tokenizer_small_104.json")
    ours = json.loads(tiny_tokenizer.read_text(encoding="utf-8"))
    theirs = json.loads(accept_special_tokens(published).to_str())
    trained = train(tiny_text.read_text(encoding="utf-8").splitlines(), 512, 2, "reference")
    reference = json.loads(trained.to_str())
    assert reference["model"].pop("vocab") == ours["model"].pop("vocab")
    theirs["model"].pop("vocab")
    assert reference == theirs
    assert ours["model"].pop("max_input_chars_per_word") == 500
    assert theirs["model"].pop("max_input_chars_per_word") == 100
    assert theirs["pre_tokenizer"]["pretokenizers"].pop()["type"] == "Digits"
    assert ours["pre_tokenizer"]["pretokenizers"].pop()["type"] == "Split"
    assert ours == theirs


def test_ascii_text_has_the_same_subwords_as_in_the_reference(tiny_text):
    seed = random.randrange(sys.maxsize)
    print(f"seed {seed}")
    draw = random.Random(seed)
    lines = [
        "".join(draw.choices(string.printable, k=draw.randint(1, 99))) + "".join(draw.choices("0189 a", k=20))
        for _ in range(2000)
    ]
    text = tiny_text.read_text(encoding="utf-8").splitlines() + lines
    ours, reference = (train(text, 600, 2, digits) for digits in ("ascii", "reference"))
    assert ours.get_vocab() == reference.get_vocab()
    for line in lines:
        assert ours.encode(line).ids == reference.encode(line).ids, repr(line)


def test_only_ascii_digits_are_isolated(tiny_text):
    """``²``, ``³``, ``¹``, ``¼``, ``½`` and ``¾`` stand for bytes of other scripts in the vocabulary."""
    russian = ["\u0432\u0433\u0439\u043c\u043d\u043e \u0441\u0442\u0443\u043b \u0442\u0440\u0438"] * 900
    russian += tiny_text.read_text(encoding="utf-8").splitlines()
    ours, reference = (train(russian, 480, 2, digits) for digits in ("ascii", "reference"))
    assert len(ours.encode(russian[0]).ids) == 3
    assert len(reference.encode(russian[0]).ids) > 10
    for tokenizer in (ours, reference):
        assert tokenizer.encode("x1984y 3.50").tokens == [*"\u0120x1984y", "\u0120", *"3.50"]


def test_no_word_is_unknown_however_long(tiny_text):
    text = tiny_text.read_text(encoding="utf-8").splitlines()
    ours, reference = (train(text, 512, 2, digits) for digits in ("ascii", "reference"))
    for length in (98, 99, 100, 499, 500, 501, 1000, 1001, 5000):
        for word in ("q" * length, "\u0e01" * length):
            ids = ours.encode(word, add_special_tokens=False).ids
            assert UNK not in ids
            assert ours.decode(ids) == " " + word
    # The space in front counts.
    assert [UNK in reference.encode("q" * length).ids for length in (98, 99, 100)] == [False, False, True]


def test_user_errors_of_the_tokenizer_command(tiny_text, tmp_path):
    output = tmp_path / "t.json"
    assert_failed(
        run("tokenizer", "--input", tiny_text, "--vocab-size", 100, "--output", output),
        "--vocab-size",
        "263",
    )
    assert_failed(
        run("tokenizer", "--input", tiny_text, "--vocab-size", 60000, "--output", output),
        "60000",
        "--vocab-size",
    )
    assert_failed(
        run("tokenizer", "--input", tmp_path / "none", "--output", output),
        f"{tmp_path / 'none'}: no such file",
    )
    assert_rejected(
        run("tokenizer", "--input", tiny_text, "--min-frequency", -1, "--output", output),
        "--min-frequency",
        "-1",
    )
    assert list(tmp_path.iterdir()) == []


def test_95_percent_of_the_subwords_occur_at_least_f95_times():
    assert f95(np.arange(100)) == 5
    assert f95(np.array([7])) == 7


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([0, 0, 0, 5, 9], 5),  # only subwords that occur count
        ([0] * 50 + [3] * 5 + [8] * 95, 8),
        ([0] * 50 + [3] * 6 + [8] * 94, 3),
        ([1, *[4] * 19], 4),
        ([1, *[4] * 18], 1),
        ([0, 0], 0),
        ([], 0),
    ],
)
def test_f95_counts_the_subwords_that_occur(counts, expected):
    assert f95(np.array(counts, dtype=np.int64)) == expected


def test_build_reports_the_share_of_unknown_tokens(tiny_text, shared, tmp_path):
    (tmp_path / "t.txt").write_text("q" * 100 + " " + "q" * 200 + " a a.\n", encoding="utf-8")
    done = build(tmp_path / "t.txt", shared / "tokenizers/tokenizer.json", tmp_path / "d", "--lengths", 16)
    assert done.returncode == 0, done.stderr
    manifest = IndexedDataset(tmp_path / "d").manifest
    assert (manifest.unknown, manifest.tokens) == (2, 6)
    assert re.search(r"unknown +33\.3333%\n", done.stdout)
    assert re.search(r"unknown +33\.3333%\n", run("inspect", tmp_path / "d").stdout)
    (tmp_path / "t.txt").write_text("a " + "r" * 100 + ".\n", encoding="utf-8")
    done = build(tmp_path / "t.txt", shared / "tokenizers/tokenizer.json", tmp_path / "e", "--lengths", 16)
    assert done.returncode == 0, done.stderr
    done = run("merge", "--input", tmp_path / "d", tmp_path / "e", "--output", tmp_path / "m")
    assert done.returncode == 0, done.stderr
    assert IndexedDataset(tmp_path / "m").manifest.unknown == 3


def test_segments_are_added_to_a_dataset(tiny_text, tiny_tokenizer, tmp_path):
    prefix = tmp_path / "d"
    assert build(tiny_text, tiny_tokenizer, prefix, "--lengths", 32).returncode == 0
    done = run("segments", prefix, "--lengths", 32, 64)
    assert done.returncode == 0, done.stderr
    assert "segments of 64" in done.stdout
    assert [each.sequence_length for each in IndexedDataset(prefix).manifest.segments] == [32, 64]
    assert_failed(run("segments", tmp_path / "none", "--lengths", 64), "none.idx: ")
    assert_failed(run("segments", prefix, "--lengths", 2), "length 2")
    with open(tmp_path / "d.bin", "r+b") as file:
        file.truncate(100)
    assert_failed(run("segments", prefix, "--lengths", 128), f"{prefix}.bin: ", "100")


def test_build_reports_text_that_no_segment_contains(tiny_tokenizer, tmp_path):
    (tmp_path / "t.txt").write_text("ba " * 40 + "\nba ba.\n", encoding="utf-8")
    done = build(tmp_path / "t.txt", tiny_tokenizer, tmp_path / "d", "--lengths", 16, 256)
    assert done.returncode == 0, done.stderr
    manifest = IndexedDataset(tmp_path / "d").manifest
    first, second = manifest.segments
    assert second.unread == 0
    assert first.unread == int(IndexedDataset(tmp_path / "d").lengths[0]) - 14
    assert re.search(rf"tokens in none of them +{first.unread / manifest.tokens:.2%}\n", done.stdout)
    assert re.search(r"tokens in none of them +0\.00%\n", done.stdout)
    assert done.stdout.count("--policy packed") == 1
