"""Tests of all commands together, and of the commands that have no test file of their own."""

import json

import numpy as np
import pytest

from data_tools.__main__ import COMMANDS
from data_tools.tokenizer import f95
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.text_with_masks import accept_special_tokens
from elc_bert.data.format.vocabulary import load_tokenizer
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


def test_tokenizer_has_the_structure_of_the_published_ones(tiny_tokenizer, shared):
    published = load_tokenizer(shared / "tokenizers/tokenizer_small_104.json")
    ours = json.loads(tiny_tokenizer.read_text(encoding="utf-8"))
    theirs = json.loads(accept_special_tokens(published).to_str())
    for values in (ours, theirs):
        values["model"].pop("vocab")
    assert ours == theirs


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
