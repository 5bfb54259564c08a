"""The commands that have no file of their own here, and what is common to all."""

import json

import numpy as np
import pytest

from data_tools.__main__ import COMMANDS
from data_tools.tokenizer import f95
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.vocabulary import load_tokenizer
from elc_bert.utils.files import sha256_of
from tests.data_tools.running import fails_with, run


def build(text, tokenizer, prefix, *more):
    return run("build", "--input", text, "--tokenizer", tokenizer, "--output", prefix, "--workers", 1, *more)


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_teaches_by_example(name):
    done = run(*filter(None, [name]), "--help")
    assert done.returncode == 0
    assert f"python -m data_tools {name or 'build'}" in done.stdout


def test_tokenizer_is_a_function_of_the_text(tiny_text, tmp_path):
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


def test_tokenizer_has_the_structure_of_the_published_ones(tiny_tokenizer, shared):
    ours, theirs = (
        json.loads(path.read_text(encoding="utf-8"))
        for path in (tiny_tokenizer, shared / "tokenizers/tokenizer_small_104.json")
    )
    for values in (ours, theirs):
        values["model"].pop("vocab")
    assert ours == theirs


def test_tokenizer_mistakes(tiny_text, tmp_path):
    output = tmp_path / "t.json"
    fails_with(
        run("tokenizer", "--input", tiny_text, "--vocab-size", 100, "--output", output),
        "263 hold only the bytes",
    )
    fails_with(
        run("tokenizer", "--input", tiny_text, "--vocab-size", 60000, "--output", output),
        "of the 60000 of --vocab-size",
    )
    fails_with(
        run("tokenizer", "--input", tmp_path / "none", "--output", output), "no such file or directory"
    )
    assert list(tmp_path.iterdir()) == []


def test_f95_is_reached_by_95_percent():
    assert f95(np.arange(100)) == 5
    assert f95(np.array([7])) == 7


def test_segments_are_added_to_a_dataset(tiny_text, tiny_tokenizer, tmp_path):
    prefix = tmp_path / "d"
    assert build(tiny_text, tiny_tokenizer, prefix, "--lengths", 32).returncode == 0
    done = run("segments", prefix, "--lengths", 32, 64)
    assert done.returncode == 0, done.stderr
    assert "segments of 64" in done.stdout
    assert [each.sequence_length for each in IndexedDataset(prefix).manifest.segments] == [32, 64]
    fails_with(run("segments", tmp_path / "none", "--lengths", 64), "cannot open the dataset")
    fails_with(run("segments", prefix, "--lengths", 2), "sequence length 2 is too short")
    with open(tmp_path / "d.bin", "r+b") as file:
        file.truncate(100)
    fails_with(run("segments", prefix, "--lengths", 128), "truncated")
