import shutil

import numpy as np
import pytest

from data_tools.verify import verify
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.manifest import Manifest
from elc_bert.data.format.segments import build_segments
from elc_bert.utils.files import sha256_of
from tests.data.format import foreign
from tests.data_tools.running import fails_with, run


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


def seal(prefix, **changes):
    """Makes the manifest agree with files that were changed, so that only their content gives them away."""
    manifest = Manifest.load(prefix)
    segments = [
        each.model_copy(update={"sha256": sha256_of(prefix.with_name(each.file))})
        for each in manifest.segments
    ]
    sums = {f"{name}_sha256": sha256_of(prefix.with_suffix(f".{name}")) for name in ("bin", "idx")}
    manifest.model_copy(update={"segments": segments} | sums | changes).save(prefix)


def test_an_intact_dataset_passes_with_a_table_of_what_was_checked(copy, tiny_tokenizer):
    done = run("verify", copy, "--tokenizer", tiny_tokenizer)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"{copy}: intact"
    names = [line[2:26].strip() for line in lines[1:]]
    segments = ["segments of 32", "segments of 32", "segments of 128"]
    assert names == [
        *("structure", "manifest", "sentences", "documents"),
        *segments,
        *("tokenizer", "token ids", "checksums"),
    ]
    assert "not checked" not in done.stdout
    assert "all below 512" in done.stdout
    assert "of 5 files" in done.stdout


def test_help_teaches_by_example():
    assert "python -m data_tools verify corpus/train corpus/dev" in run("verify", "--help").stdout


def test_segments_of_any_policy_can_be_added_and_pass(copy):
    for policy in ("packed", "reference"):
        done = run("segments", copy, "--lengths", 16, 64, "--policy", policy)
        assert done.returncode == 0, done.stderr
        assert f"{policy} segments of 64" in done.stdout
    assert "(100% filled)" in run("segments", copy, "--lengths", 30, "--policy", "packed").stdout
    report = verify(copy)
    assert report.problems == []
    assert sum(name.startswith("segments of") for name, _ in report.checked) == 3 + 5


def test_what_was_left_out_is_said(copy):
    assert dict(verify(copy).not_checked) == {"tokenizer": "give it with --tokenizer"}
    report = verify(copy, fast=True)
    assert ("checksums, token ids", "left out by --fast") in report.not_checked
    assert "not checked: left out by --fast" in report.table()
    assert "token ids" not in dict(report.checked)


def test_all_problems_are_listed_and_the_status_says_so(copy, tiny_dataset, tiny_text):
    change(copy.with_suffix(".bin"), 100, b"\xff\xff")
    change(copy.with_name("tiny.segments-32.npy"), 128 + 12 * 5, b"\x01")
    copy.with_name("tiny.segments-128.npy").unlink()
    done = run("verify", tiny_dataset, copy)
    assert done.returncode == 1
    assert f"{tiny_dataset}: intact" in done.stdout
    problems = [line for line in done.stdout.splitlines() if line.startswith(str(copy))]
    assert len(problems) == 6
    for start, what, mend in (
        (".bin", "not the file that the manifest was made for", "copy or build it again"),
        (".bin", "token id 65535 at place 50, one of 1", "copy or build it again"),
        (".segments-32.npy", "segment 5 is 30 tokens from", "--lengths 32 --overwrite"),
        (".segments-32.npy", "not the file that", "build it again"),
        (".segments-128.npy", "No such file", "--lengths 128 --overwrite"),
        (".segments-128.npy", "no such file", "build it again"),
    ):
        assert any(each.startswith(f"{copy}{start}: {what}") or what in each for each in problems)
        assert any(each.startswith(f"{copy}{start}") and what in each and mend in each for each in problems)
    fails_with(done, "problems found: 6")


def test_a_file_that_is_no_tokenizer_fails_at_once(copy, tiny_text):
    done = run("verify", copy, "--tokenizer", tiny_text)
    fails_with(done, "not a tokenizer")
    assert done.stdout == ""


def test_another_tokenizer_is_a_problem(copy, tiny_tokenizer, tmp_path):
    other = tmp_path / "other.json"
    other.write_text(tiny_tokenizer.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    (problem,) = verify(copy, other).problems
    assert "not the tokenizer that" in problem


@pytest.mark.parametrize(
    ("suffix", "offset", "data", "message"),
    [
        (".bin", 0, b"\x00\x02", "token id 512 at place 0, one of 1 that are in no vocabulary of 512"),
        (".idx", 34, b"\xff\xff\xff\xff", "sentence 0 (-1 tokens from byte 0 on) does not lie in"),
        (".idx", 34, b"\x00\x00\x00\x00", "sentence 1 begins at token"),
        (
            ".segments-32.npy",
            128,
            b"\x01",
            "segment 0 is 30 tokens from 1 on, but 30 from 0 by policy reference",
        ),
        (
            ".segments-32-packed.npy",
            128 + 8,
            b"\x05",
            "segment 0 is 5 tokens from 0 on, but 30 from 0 by policy",
        ),
        (".segments-32.npy", 128 + 8, b"\xff\xff\xff\xff", "segment 0 lies outside of the token stream"),
    ],
)
def test_what_checksums_cannot_tell_is_found_by_looking(copy, suffix, offset, data, message):
    """As after a bug in whatever wrote the file, when the checksum is of the wrong file."""
    change(copy.with_suffix(suffix), offset, data)
    seal(copy)
    problems = verify(copy).problems
    assert any(message in problem for problem in problems), problems
    assert not any("sha256" in problem for problem in problems)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 5}, "says 5 tokens"),
        ({"documents": 41}, "says 41 documents"),
        ({"vocab_size": 100}, "that are in no vocabulary of 100"),
        ({"vocab_size": 70_000}, "says a vocabulary of 70000"),
        ({"segments": []}, "tiny.segments-32.npy: not in tiny.json"),
    ],
)
def test_a_manifest_of_something_else_is_a_problem(copy, changes, message):
    Manifest.load(copy).model_copy(update=changes).save(copy)
    assert any(message in problem for problem in verify(copy).problems)


def test_segments_of_an_unknown_policy_are_a_problem(copy):
    manifest = Manifest.load(copy)
    entries = [manifest.segments[0].model_copy(update={"policy": "greedy"}), *manifest.segments[1:]]
    manifest.model_copy(update={"segments": entries}).save(copy)
    (problem,) = verify(copy).problems
    assert "segments of policy greedy are unknown" in problem


@pytest.mark.parametrize(("old", "new"), [('"words"', '"words" '), ('"words": ', '"words": 1')])
def test_any_change_of_the_manifest_is_a_problem(copy, old, new):
    path = Manifest.path(copy)
    path.write_text(path.read_text().replace(old, new))
    assert verify(copy).problems == [f"{path}: not as it was written; copy or build the dataset again"]


def test_a_lost_manifest_is_a_problem_where_segments_are_left(copy):
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
    assert "d.idx: cannot open the dataset: No such file" in done.stdout


def test_negative_ids_are_a_problem_in_any_vocabulary(tmp_path):
    foreign.write(tmp_path / "d", [[1, 2], [-3, -1]], [0, 2], code=3)
    (problem,) = verify(tmp_path / "d").problems
    assert "token id -3 at place 2, one of 2" in problem


def test_bytes_that_were_read_add_up(copy):
    size = sum(
        path.stat().st_size for path in copy.parent.iterdir() if path.suffix in (".bin", ".idx", ".npy")
    )
    tables = sum(np.load(path).nbytes for path in copy.parent.glob("*.npy"))
    tables += copy.with_suffix(".idx").stat().st_size - 34 - 8
    read = []
    verify(copy, progress=read.append)
    assert sum(read) == size + tables
