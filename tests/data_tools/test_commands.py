"""The commands as a user runs them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_tools.tokenizer import f95
from elc_bert.data.indexed import IndexedDataset
from elc_bert.data.segments import open_segments
from elc_bert.data.vocabulary import PAR, load_tokenizer
from elc_bert.files import sha256_of

REPOSITORY = Path(__file__).resolve().parents[2]


def command(*arguments) -> list[str]:
    return [sys.executable, "-m", "data_tools", *map(str, arguments)]


def run(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, encoding="utf-8", env=environment, timeout=120
    )
    assert "Traceback" not in done.stderr
    return done


def build(text, tokenizer, prefix, *more):
    return run("build", "--input", text, "--tokenizer", tokenizer, "--output", prefix, "--workers", 1, *more)


def fails_with(done, message):
    """One line on standard error that says so."""
    assert done.returncode == 1
    assert done.stderr.startswith("data_tools: error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


@pytest.mark.parametrize("name", ["", "tokenizer", "build", "segments"])
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


def test_build_makes_a_dataset_that_decodes_to_its_text(tmp_path, tiny_tokenizer):
    text = tmp_path / "text"
    text.mkdir()
    (text / ".hidden").mkdir()
    (text / ".hidden/c.txt").write_text("Not text.")
    (text / "b.txt").write_text("Fine. Ta ka.\n", encoding="utf-8")
    (text / "a.txt").write_text(
        "\ufeffHe went. She stayed!\r\nA paragraph.\n\n \nNew document.", encoding="utf-8"
    )
    done = build(text, tiny_tokenizer, tmp_path / "out/d", "--lengths", 16, 32)
    assert done.returncode == 0, done.stderr
    assert "documents                          3" in done.stdout
    dataset = IndexedDataset(tmp_path / "out/d")
    tokenizer = load_tokenizer(tiny_tokenizer)
    ends = np.cumsum(dataset.lengths)
    sentences = [
        tokenizer.decode(dataset.tokens[end - n : end].tolist(), skip_special_tokens=False)
        for end, n in zip(ends, dataset.lengths, strict=True)
    ]
    assert [sentence.replace(" [PAR]", "[PAR]").strip() for sentence in sentences] == [
        "He went.",
        "She stayed![PAR]",
        "A paragraph.[PAR]",
        "New document.[PAR]",
        "Fine.",
        "Ta ka.[PAR]",
    ]
    assert dataset.documents.tolist() == [0, 3, 4, 6]
    assert (dataset.tokens == PAR).sum() == 4
    manifest = dataset.manifest
    assert manifest.words == 11
    assert manifest.bin_sha256 == sha256_of(tmp_path / "out/d.bin")
    assert manifest.idx_sha256 == sha256_of(tmp_path / "out/d.idx")
    assert manifest.tokenizer_sha256 == sha256_of(tiny_tokenizer)
    assert [entry.sequence_length for entry in manifest.segments] == [16, 32]
    assert len(open_segments(dataset, 16)) >= 3
    names = {"d.bin", "d.idx", "d.json", "d.segments-16.npy", "d.segments-32.npy"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


def test_the_number_of_workers_changes_nothing(tiny_text, tiny_tokenizer, tiny_dataset, tmp_path):
    done = build(tiny_text, tiny_tokenizer, tmp_path / "d", "--workers", 3)
    assert done.returncode == 0, done.stderr
    for suffix in (".bin", ".idx"):
        assert sha256_of(tmp_path / f"d{suffix}") == sha256_of(tiny_dataset.with_suffix(suffix))


def test_a_dataset_is_replaced_only_on_request(tiny_text, tiny_tokenizer, tmp_path):
    prefix = tmp_path / "d"
    (tmp_path / "one.txt").write_text("One sentence.", encoding="utf-8")
    assert build(tiny_text, tiny_tokenizer, prefix, "--lengths", 32).returncode == 0
    fails_with(build(tmp_path / "one.txt", tiny_tokenizer, prefix), "add --overwrite")
    assert IndexedDataset(prefix).manifest.documents == 40
    assert build(tmp_path / "one.txt", tiny_tokenizer, prefix, "--overwrite", "--lengths", 64).returncode == 0
    assert IndexedDataset(prefix).manifest.documents == 1
    assert not (tmp_path / "d.segments-32.npy").exists()


def test_build_mistakes_leave_nothing_behind(tiny_text, tiny_tokenizer, tmp_path):
    bad, empty, folder = tmp_path / "bad.txt", tmp_path / "empty.txt", tmp_path / "folder"
    bad.write_bytes(b"good line\nb\xff")
    empty.write_text("\n \n")
    folder.mkdir()
    prefix = tmp_path / "out/d"
    fails_with(build(bad, tiny_tokenizer, prefix), "bad.txt: not UTF-8 at byte 11")
    fails_with(build(empty, tiny_tokenizer, prefix), "empty.txt: the input holds no text")
    fails_with(build(folder, tiny_tokenizer, prefix), "folder: the directory holds no files")
    fails_with(build(tmp_path / "none.txt", tiny_tokenizer, prefix), "none.txt: no such file")
    fails_with(build(tiny_text, tiny_text, prefix), "tiny.txt: not a tokenizer")
    fails_with(build(tiny_text, tiny_tokenizer, prefix, "--lengths", 3), "sequence length 3 is too short")
    assert list((tmp_path / "out").iterdir()) == []


def test_ctrl_c_stops_the_build_and_leaves_nothing_behind(tiny_text, tiny_tokenizer, tmp_path):
    text = tmp_path / "long.txt"
    text.write_text(tiny_text.read_text(encoding="utf-8") * 1000, encoding="utf-8")
    process = subprocess.Popen(
        command("build", "--input", text, "--tokenizer", tiny_tokenizer, "--output", tmp_path / "out/d"),
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that started the tests in the background has them ignore Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out/.d.bin*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert list((tmp_path / "out").iterdir()) == []


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
