"""The command ``verify`` on intact and damaged datasets."""

import shutil

import numpy as np
import pytest

from data_tools.verify import verify
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.manifest import Manifest
from elc_bert.data.format.segments import build_segments
from elc_bert.utils.files import sha256_of
from tests.data.format import foreign
from tests.data_tools.running import assert_failed, run


@pytest.fixture
def copy(tiny_dataset, tmp_path):
    for path in tiny_dataset.parent.glob("tiny.*"):
        shutil.copy(path, tmp_path)
    build_segments(IndexedDataset(tmp_path / "tiny"), 32, "packed")
    return tmp_path / "tiny"


def change(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def update_manifest(prefix, **changes):
    """Update the manifest to match changed files, so that only their contents show the damage."""
    manifest = Manifest.load(prefix)
    segments = [
        each.model_copy(update={"sha256": sha256_of(prefix.with_name(each.file))})
        for each in manifest.segments
    ]
    sums = {f"{name}_sha256": sha256_of(prefix.with_suffix(f".{name}")) for name in ("bin", "idx")}
    manifest.model_copy(update={"segments": segments} | sums | changes).save(prefix)


def test_an_intact_dataset_passes_with_a_table_of_the_checks(copy, tiny_tokenizer):
    done = run("verify", copy, "--tokenizer", tiny_tokenizer)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"{copy}: intact"
    names = [line[2:26].strip() for line in lines[1:] if line.startswith("  ")]
    segments = ["segments of 32", "segments of 32", "segments of 128"]
    assert names == [
        *("structure", "manifest", "sentences", "documents"),
        *segments,
        *("tokenizer", "token ids", "checksums"),
    ]
    assert "not checked" not in done.stdout
    assert "all below 512" in done.stdout
    assert "of 5 files" in done.stdout


def test_the_help_text_of_verify_has_examples():
    assert "python -m data_tools verify corpus/train corpus/dev" in run("verify", "--help").stdout


def test_segments_of_any_policy_can_be_added_and_pass(copy):
    for policy in ("packed", "reference"):
        done = run("segments", copy, "--lengths", 16, 64, "--policy", policy)
        assert done.returncode == 0, done.stderr
        assert f"{policy} segments of 64" in done.stdout
    assert (
        "(100% filled; 0.00% of the tokens in none of them)"
        in run("segments", copy, "--lengths", 30, "--policy", "packed").stdout
    )
    report = verify(copy)
    assert report.problems == []
    assert sum(name.startswith("segments of") for name, _ in report.checked) == 3 + 5


def test_skipped_checks_are_listed(copy):
    assert dict(verify(copy).not_checked) == {"tokenizer": "needs --tokenizer"}
    report = verify(copy, fast=True)
    assert ("checksums, token ids", "skipped by --fast") in report.not_checked
    assert "not checked: skipped by --fast" in report.table()
    assert "token ids" not in dict(report.checked)


def test_all_problems_are_listed_and_the_exit_status_is_1(copy, tiny_dataset, tiny_text):
    change(copy.with_suffix(".bin"), 100, b"\xff\xff")
    change(copy.with_name("tiny.segments-32.npy"), 128 + 12 * 5, b"\x01")
    copy.with_name("tiny.segments-128.npy").unlink()
    done = run("verify", tiny_dataset, copy)
    assert done.returncode == 1
    assert f"{tiny_dataset}: intact" in done.stdout
    problems = [line for line in done.stdout.splitlines() if line.startswith(str(copy))]
    assert len(problems) == 6
    for suffix, problem, fix in (
        (".bin", "SHA-256", "rebuild"),
        (".bin", "token id 65535 at position 50", "rebuild"),
        (".segments-32.npy", "segment 5 has 30 tokens", "--lengths 32 --overwrite"),
        (".segments-32.npy", "SHA-256", "rebuild"),
        (".segments-128.npy", "No such file", "--lengths 128 --overwrite"),
        (".segments-128.npy", "no such file", "rebuild"),
    ):
        start = f"{copy}{suffix}: "
        assert any(each.startswith(start) and problem in each and fix in each for each in problems)
    assert_failed(done, "problems found: 6")


def test_a_file_that_is_not_a_tokenizer_fails_at_once(copy, tiny_text):
    done = run("verify", copy, "--tokenizer", tiny_text)
    assert_failed(done, f"{tiny_text}: ", "tokenizer")
    assert done.stdout == ""


def test_another_tokenizer_is_a_problem(copy, tiny_tokenizer, tmp_path):
    other = tmp_path / "other.json"
    text = tiny_tokenizer.read_text(encoding="utf-8")
    other.write_text(text + "\n", encoding="utf-8")
    assert verify(copy, other).problems == []  # the same tokenizer in another layout
    other.write_text(text.replace('"normalizer":null', '"normalizer":{"type":"Lowercase"}'), encoding="utf-8")
    (problem,) = verify(copy, other).problems
    assert problem.startswith(f"{other}: ")
    assert str(copy) in problem


@pytest.mark.parametrize(
    ("suffix", "offset", "data", "message"),
    [
        (".bin", 0, b"\x00\x02", "token id 512 at position 0 (1 in total; the vocabulary has 512 subwords)"),
        (".idx", 34, b"\xff\xff\xff\xff", "sentence 0 (-1 tokens"),
        (".idx", 34, b"\x00\x00\x00\x00", "sentence 1 begins at token"),
        (
            ".segments-32.npy",
            128,
            b"\x01",
            "segment 0 has 30 tokens from position 1, but policy reference gives 30 from 0",
        ),
        (
            ".segments-32-packed.npy",
            128 + 8,
            b"\x05",
            "segment 0 has 5 tokens from position 0, but policy packed gives 30 from 0",
        ),
        (".segments-32.npy", 128 + 8, b"\xff\xff\xff\xff", "segment 0 lies outside"),
    ],
)
def test_damage_with_a_valid_checksum_is_found(copy, suffix, offset, data, message):
    """A bug in the program that wrote the file can cause damage with a valid checksum."""
    change(copy.with_suffix(suffix), offset, data)
    update_manifest(copy)
    problems = verify(copy).problems
    assert any(message in problem for problem in problems), problems
    assert not any("SHA-256" in problem for problem in problems)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 5}, "5 tokens"),
        ({"documents": 41}, "41 documents"),
        ({"vocab_size": 100}, "the vocabulary has 100 subwords"),
        ({"vocab_size": 70_000}, "70000"),
        ({"segments": []}, "tiny.segments-32.npy: not listed in tiny.json"),
    ],
)
def test_a_manifest_of_another_dataset_is_a_problem(copy, changes, message):
    Manifest.load(copy).model_copy(update=changes).save(copy)
    assert any(message in problem for problem in verify(copy).problems)


def test_segments_of_an_unknown_policy_are_a_problem(copy):
    manifest = Manifest.load(copy)
    entries = [manifest.segments[0].model_copy(update={"policy": "greedy"}), *manifest.segments[1:]]
    manifest.model_copy(update={"segments": entries}).save(copy)
    (problem,) = verify(copy).problems
    assert str(copy) in problem
    assert "greedy" in problem


@pytest.mark.parametrize(("old", "new"), [('"words"', '"words" '), ('"words": ', '"words": 1')])
def test_any_change_of_the_manifest_is_a_problem(copy, old, new):
    path = Manifest.path(copy)
    path.write_text(path.read_text().replace(old, new))
    (problem,) = verify(copy).problems
    assert problem.startswith(f"{path}: changed")


def test_a_missing_manifest_is_a_problem_if_there_are_segments(copy):
    Manifest.path(copy).unlink()
    assert len(verify(copy).problems) == 3
    for path in copy.parent.glob("*.npy"):
        path.unlink()
    report = verify(copy)
    assert report.problems == []
    assert {name for name, _ in report.not_checked} == {"manifest", "tokenizer", "vocabulary", "checksums"}


def test_a_missing_dataset_is_a_problem(tmp_path):
    done = run("verify", tmp_path / "no/d")
    assert done.returncode == 1
    assert f"{tmp_path / 'no/d'}.idx: " in done.stdout


def test_negative_ids_are_a_problem_for_any_vocabulary(tmp_path):
    foreign.write(tmp_path / "d", [[1, 2], [-3, -1]], [0, 2], code=3)
    (problem,) = verify(tmp_path / "d").problems
    assert "token id -3 at position 2 (2 in total" in problem


def test_the_progress_adds_up_to_the_bytes_read(copy):
    size = sum(
        path.stat().st_size for path in copy.parent.iterdir() if path.suffix in (".bin", ".idx", ".npy")
    )
    tables = sum(np.load(path).nbytes for path in copy.parent.glob("*.npy"))
    tables += copy.with_suffix(".idx").stat().st_size - 34 - 8
    read = []
    verify(copy, progress=read.append)
    assert sum(read) == size + tables
