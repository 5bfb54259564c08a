"""The command ``build`` as a user runs it: alone, under mpirun, interrupted, on bad input."""

import functools
import gzip
import json
import os
import re
import resource
import shutil
import signal
import time

import numpy as np
import pyarrow
import pyarrow.parquet as pq
import pytest

from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.segments import open_segments
from elc_bert.data.format.vocabulary import PAR, load_tokenizer
from elc_bert.utils.files import sha256_of
from tests.data_tools.running import assert_failed, assert_rejected, run, start


def build_arguments(text, tokenizer, prefix, *more):
    return ["build", "--input", text, "--tokenizer", tokenizer, "--output", prefix, *more]


def build(*arguments, **options):
    return run(*build_arguments(*arguments), **options)


def hashes(prefix) -> list[str]:
    """Return the hashes of all files that must be bit-identical."""
    return [
        sha256_of(path) for path in sorted(prefix.parent.glob(f"{prefix.name}.*")) if path.suffix != ".json"
    ]


@pytest.fixture(scope="module")
def large_text(tiny_text, tmp_path_factory):
    """Files that are encoded in several pieces, one of them compressed, one with records."""
    folder = tmp_path_factory.mktemp("large")
    text = tiny_text.read_text(encoding="utf-8")
    for name, times in (("a.txt", 60), ("b.txt", 15)):
        (folder / name).write_text(text * times, encoding="utf-8")
    (folder / "c.txt.gz").write_bytes(gzip.compress((text * 15).encode()))
    records = (json.dumps({"text": document}) for document in text.split("\n\n"))
    (folder / "d.jsonl").write_text("\n".join(records) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def large_dataset(large_text, tiny_tokenizer, tmp_path_factory):
    """Dataset built from ``large_text`` by one process with one worker."""
    prefix = tmp_path_factory.mktemp("built") / "d"
    done = build(large_text, tiny_tokenizer, prefix, "--workers", 1, "--lengths", 32)
    assert done.returncode == 0, done.stderr
    return prefix


def test_a_built_dataset_decodes_to_its_text(tmp_path, tiny_tokenizer):
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
    assert re.search(r"documents +3\n", done.stdout)
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


@pytest.mark.parametrize(("ranks", "workers"), [(None, 3), (2, 1), (3, 2)])
def test_the_dataset_does_not_depend_on_ranks_and_workers(
    large_text, tiny_tokenizer, large_dataset, tmp_path, ranks, workers
):
    done = build(
        large_text, tiny_tokenizer, tmp_path / "d", "--workers", workers, "--lengths", 32, ranks=ranks
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("documents") == 1  # only one rank prints the summary
    assert hashes(tmp_path / "d") == hashes(large_dataset)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "d.bin",
        "d.idx",
        "d.json",
        "d.segments-32.npy",
    ]


def test_the_manifest_records_the_inputs(large_text, large_dataset, tiny_tokenizer):
    manifest = IndexedDataset(large_dataset).manifest
    files = sorted(large_text.iterdir())
    assert [entry.path for entry in manifest.inputs] == list(map(str, files))
    assert [entry.sha256 for entry in manifest.inputs] == list(map(sha256_of, files))
    assert [entry.bytes for entry in manifest.inputs] == [path.stat().st_size for path in files]
    assert manifest.documents == 91 * 40 - 87  # no empty line separates the repetitions of a text
    assert manifest.tokenizer_sha256 == sha256_of(tiny_tokenizer)
    assert set(manifest.versions) == {"elc-bert", "tokenizers", "sentencex"}


def parts_of(prefix):
    return list(prefix.parent.glob(f".{prefix.name}.build/*.json"))


def begin(text, tokenizer, prefix):
    """Start a build of several parts, and return when at least one part is finished."""
    process = start(*build_arguments(text, tokenizer, prefix, "--workers", 1, "--lengths", 32))
    deadline = time.monotonic() + 60
    while not parts_of(prefix):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def test_a_killed_build_resumes_from_its_finished_parts(large_text, tiny_tokenizer, large_dataset, tmp_path):
    prefix = tmp_path / "d"
    process = begin(large_text, tiny_tokenizer, prefix)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert [path.name for path in tmp_path.iterdir()] == [".d.build"]
    # In a second copy, a finished part is changed, so that it can be recognized in the result.
    shutil.copytree(tmp_path, tmp_path / "marked")
    (part, *_) = parts_of(tmp_path / "marked/d")
    with open(part.with_suffix(".tokens"), "r+b") as file:
        file.write(b"\x63\x00")
    for each in (prefix, tmp_path / "marked/d"):
        done = build(large_text, tiny_tokenizer, each, "--lengths", 32, ranks=2)
        assert done.returncode == 0, done.stderr
        assert not each.with_name(".d.build").exists()
    assert hashes(prefix) == hashes(large_dataset)
    same = IndexedDataset(tmp_path / "marked/d").tokens == IndexedDataset(prefix).tokens
    assert (~same).sum() == 1


def test_ctrl_c_keeps_finished_parts(large_text, tiny_tokenizer, large_dataset, tmp_path):
    prefix = tmp_path / "d"
    process = begin(large_text, tiny_tokenizer, prefix)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert not list(tmp_path.glob("d*"))
    assert parts_of(prefix)
    assert build(large_text, tiny_tokenizer, prefix, "--lengths", 32).returncode == 0
    assert hashes(prefix) == hashes(large_dataset)


def test_a_second_build_of_the_same_dataset_is_refused(large_text, tiny_tokenizer, large_dataset, tmp_path):
    process = begin(large_text, tiny_tokenizer, tmp_path / "d")
    os.killpg(process.pid, signal.SIGSTOP)  # it might end before the second one begins
    second = build(large_text, tiny_tokenizer, tmp_path / "d")
    os.killpg(process.pid, signal.SIGCONT)
    assert_failed(second, str(tmp_path / "d"), "another process")
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert hashes(tmp_path / "d") == hashes(large_dataset)


def test_a_full_disk_is_reported_and_finished_parts_remain(
    large_text, tiny_tokenizer, large_dataset, tmp_path
):
    # A limit on the size of files makes writing fail as on a full disk, without filling one.
    small_disk = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE)
    prefix = tmp_path / "d"
    for limit in (1 << 18, 1 << 20):  # reached while parts are encoded, and while they are joined
        before = functools.partial(small_disk, (limit, limit))
        done = build(large_text, tiny_tokenizer, prefix, "--workers", 1, before=before)
        assert_failed(done, str(tmp_path), "File too large", "run the same command again")
        assert not list(tmp_path.glob("d*"))
    assert len(parts_of(prefix)) >= 2
    assert build(large_text, tiny_tokenizer, prefix, "--lengths", 32).returncode == 0
    assert hashes(prefix) == hashes(large_dataset)


def test_user_errors_leave_no_files_behind(tiny_text, tiny_tokenizer, tmp_path):
    bad, empty, folder = tmp_path / "bad.txt", tmp_path / "empty.txt", tmp_path / "folder"
    bad.write_bytes(b"good line\nb\xff")
    empty.write_text("\n \n")
    folder.mkdir()
    prefix = tmp_path / "out/d"
    assert_failed(build(bad, tiny_tokenizer, prefix), "bad.txt: not UTF-8 at byte 11")
    assert_failed(build(empty, tiny_tokenizer, prefix), "empty.txt: ", "no text")
    assert_failed(build(folder, tiny_tokenizer, prefix), "folder: ", "no files")
    assert_failed(build(tmp_path / "none.txt", tiny_tokenizer, prefix), "none.txt: no such file")
    assert_failed(build(tiny_text, tiny_text, prefix), "tiny.txt: ", "tokenizer")
    assert_failed(build(tiny_text, tiny_tokenizer, prefix, "--lengths", 3), "length 3")
    assert_rejected(build(tiny_text, tiny_tokenizer, prefix, "--workers", 0), "--workers", "'0'")
    assert_rejected(build(tiny_text, tiny_tokenizer, prefix, "--lengths", 0), "--lengths", "'0'")
    assert list((tmp_path / "out").iterdir()) == []


def test_one_rank_reports_a_user_error_and_all_ranks_stop(large_text, tiny_tokenizer, tmp_path):
    shutil.copytree(large_text, tmp_path / "text")
    (tmp_path / "text/z.txt").write_bytes(b"b\xff")
    done = build(tmp_path / "text", tiny_tokenizer, tmp_path / "d", ranks=3)
    assert done.returncode == 1
    assert done.stderr.count("data_tools: error: ") == 1
    assert "z.txt: not UTF-8 at byte 1" in done.stderr
    assert not list(tmp_path.glob("d*"))


def test_skipped_input_is_counted_and_reported(tiny_text, tiny_tokenizer, tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    shutil.copy(tiny_text, text / "a.txt")
    (text / "b.txt").write_bytes(b"Good line.\nb\xff\n\xff")
    (text / "c.txt").write_bytes(b"")
    (text / "d.txt.gz").write_bytes(b"damaged")
    (text / "e.jsonl").write_text('{"text": "Good record."}\n{"title": "None."}\n')
    assert_failed(build(text, tiny_tokenizer, tmp_path / "d"), "--on-error skip")
    done = build(text, tiny_tokenizer, tmp_path / "d", "--on-error", "skip")
    assert done.returncode == 0, done.stderr
    dataset = IndexedDataset(tmp_path / "d")
    assert dataset.manifest.skipped == {
        "not UTF-8": 2,
        "empty file": 1,
        "unreadable file": 1,
        "no such key": 1,
    }
    assert dataset.manifest.documents == 42
    assert re.search(r"skipped +2 x not UTF-8 \(first: .*b\.txt", done.stdout)
    # A build without --on-error skip does not reuse a part in which something was skipped.
    assert_failed(build(text, tiny_tokenizer, tmp_path / "d", "--overwrite"), "--on-error skip")
    assert IndexedDataset(tmp_path / "d").manifest.documents == 42


def damaged_parquet(path, texts) -> None:
    """Write a Parquet file whose last row group cannot be read."""
    pq.write_table(pyarrow.table({"text": texts}), path, row_group_size=1, compression="NONE")
    last = pq.read_metadata(path).row_group(len(texts) - 1).column(0)
    with open(path, "r+b") as file:
        file.seek(last.data_page_offset)
        file.write(b"\xff" * 64)


def test_nothing_of_an_unreadable_file_is_in_the_dataset(tiny_text, tiny_tokenizer, tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    content = tiny_text.read_bytes()
    shutil.copy(tiny_text, text / "a.txt")
    (text / "b.txt.gz").write_bytes(gzip.compress(b"Bad line \xff.\n" + content * 400)[:-100])
    # Longer than a piece, so the damage is found in another part than the first one.
    damaged_parquet(text / "c.parquet", ["Good text. " * 60_000] * 4)
    (text / "d.txt").write_text("The end.\n")
    assert_failed(build(text, tiny_tokenizer, tmp_path / "e"), "cannot read", "--on-error skip")
    for ranks in (None, 2):
        prefix = tmp_path / f"d{ranks}"
        done = build(text, tiny_tokenizer, prefix, "--on-error", "skip", "--lengths", 32, ranks=ranks)
        assert done.returncode == 0, done.stderr
        manifest = IndexedDataset(prefix).manifest
        assert manifest.skipped == {"unreadable file": 2}
        assert [each.path for each in manifest.inputs] == [f"{text}/a.txt", f"{text}/d.txt"]
        (text / "good").mkdir(exist_ok=True)
        shutil.copy(text / "a.txt", text / "good")
        shutil.copy(text / "d.txt", text / "good")
        good = tmp_path / f"good{ranks}"
        assert build(text / "good", tiny_tokenizer, good, "--lengths", 32).returncode == 0
        assert hashes(prefix) == hashes(good)
        assert manifest.words == IndexedDataset(good).manifest.words
        shutil.rmtree(text / "good")


def test_a_part_in_which_something_was_skipped_is_not_reused_without_skipping(tiny_tokenizer, tmp_path):
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"b\xff")
    done = build(bad, tiny_tokenizer, tmp_path / "d", "--on-error", "skip")
    assert_failed(done, "no text that can be used")
    assert parts_of(tmp_path / "d")  # the part is complete, only joining it failed
    assert_failed(build(bad, tiny_tokenizer, tmp_path / "d"), "bad.txt: not UTF-8 at byte 1")


def test_parquet_files_without_text_are_skipped(tiny_tokenizer, tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    column = pyarrow.array(["Good text.", "Good text.", "More."]).dictionary_encode()
    pq.write_table(pyarrow.table({"body": column}), text / "a.parquet")
    pq.write_table(pyarrow.table({"text": ["Not this."]}), text / "b.parquet")
    pq.write_table(pyarrow.table({"body": [1, 2]}), text / "c.parquet")
    arguments = (text, tiny_tokenizer, tmp_path / "d", "--lengths", 8, "--json-key", "body")
    assert_failed(build(*arguments), "b.parquet: no column 'body', the columns are text", "--on-error skip")
    done = build(*arguments, "--on-error", "skip")
    assert done.returncode == 0, done.stderr
    manifest = IndexedDataset(tmp_path / "d").manifest
    assert (manifest.documents, manifest.words) == (3, 5)
    assert manifest.skipped == {"no such key": 2}
    assert [each.path for each in manifest.inputs] == [f"{text}/a.parquet"]


def test_the_inputs_are_listed_before_they_are_read(tiny_text, tiny_tokenizer, tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    shutil.copy(tiny_text, text / "a.txt")
    (text / "b.json").write_text('{"text": "A record."}\n')
    (text / "c.txt").symlink_to("a.txt")
    (text / "README").write_text("About the text.")
    done = build(text, tiny_tokenizer, tmp_path / "d", "--lengths", 32)
    assert done.returncode == 0, done.stderr
    size = tiny_text.stat().st_size
    assert done.stdout.splitlines()[:6] == [
        f"input files: 2, {size + 22:,} bytes",
        f"  {text}/a.txt: plain text, {size:,} bytes",
        f"  {text}/b.json: JSON lines, 22 bytes",
        "left out: 2",
        f"  {text}/README: readme or license",
        f"  {text}/c.txt: the same file as {text}/a.txt",
    ]
    dataset = IndexedDataset(tmp_path / "d")
    assert dataset.manifest.documents == 41
    (text / "x.csv").write_text("id,text\n")
    assert_failed(build(text, tiny_tokenizer, tmp_path / "e"), "x.csv: a table", "--on-error skip")
    done = build(text, tiny_tokenizer, tmp_path / "e", "--on-error", "skip")
    assert IndexedDataset(tmp_path / "e").manifest.skipped == {"unsupported format": 1}
    assert "x.csv: a table" in done.stdout
    assert build(text, tiny_tokenizer, tmp_path / "f", "--format", "text").returncode == 0
    assert IndexedDataset(tmp_path / "f").manifest.documents == 42


def test_the_origins_of_a_dataset_from_many_files_are_kept(tiny_text, tiny_tokenizer, tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    for number, document in enumerate(tiny_text.read_text(encoding="utf-8").split("\n\n") * 3):
        (text / f"{number:03}.txt").write_text(document, encoding="utf-8")
    prefix = tmp_path / "d"
    assert build(text, tiny_tokenizer, prefix, "--lengths", 32).returncode == 0
    paths = [f"{text}/{number:03}.txt" for number in range(120)]
    manifest = IndexedDataset(prefix).manifest
    assert manifest.inputs == []
    assert [each.path for each in manifest.read_inputs(prefix)] == paths
    assert run("verify", prefix).returncode == 0
    assert "built from 120 files" in run("inspect", prefix).stdout
    outputs = ["--output-train", tmp_path / "a", "--output-dev", tmp_path / "b", "--dev-fraction", 0.4]
    assert run("split", prefix, *outputs).returncode == 0
    assert run("merge", "--input", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "m").returncode == 0
    for each in (tmp_path / "a", tmp_path / "b", tmp_path / "m"):
        found = IndexedDataset(each).manifest.read_inputs(each)
        assert found == manifest.read_inputs(prefix)
    listed = tmp_path / "d.inputs.jsonl"
    listed.write_bytes(listed.read_bytes().replace(b"000.txt", b"001.txt"))
    done = run("verify", prefix)
    assert done.returncode == 1
    assert f"{listed}: its SHA-256 is not the one in the manifest" in done.stdout
    # A dataset that replaces this one has no list.
    assert build(tiny_text, tiny_tokenizer, prefix, "--overwrite", "--lengths", 32).returncode == 0
    assert not listed.exists()


def test_file_names_need_not_be_utf_8(tiny_text, tiny_tokenizer, tmp_path):
    text = tmp_path / os.fsdecode(b"caf\xe9.txt")
    shutil.copy(tiny_text, text)
    done = build(text, tiny_tokenizer, tmp_path / "d", "--lengths", 32)
    assert done.returncode == 0, done.stderr
    assert "caf\\udce9.txt: plain text" in done.stdout
    (entry,) = IndexedDataset(tmp_path / "d").manifest.inputs
    assert entry.path == f"{tmp_path}/caf\\xe9.txt"
    assert entry.sha256 == sha256_of(tiny_text)
    folder = tmp_path / os.fsdecode(b"f\xe9")
    assert build(tiny_text, tiny_tokenizer, folder / "d", "--lengths", 32).returncode == 0
    # The manifest holds the names of segment files, so the name of a dataset must be UTF-8.
    bad = build(tiny_text, tiny_tokenizer, tmp_path / os.fsdecode(b"d\xe9"))
    assert_failed(bad, "--output", "d\\xe9: the name is not valid UTF-8")


def test_a_tokenizer_must_have_the_special_tokens(tiny_text, tiny_tokenizer, tmp_path):
    values = json.loads(tiny_tokenizer.read_text(encoding="utf-8"))
    values["added_tokens"] = [each for each in values["added_tokens"] if each["content"] != "[SEP]"]
    values["model"]["vocab"]["word 2"] = values["model"]["vocab"].pop("[SEP]")
    bad = tmp_path / "tokenizer.json"
    bad.write_text(json.dumps(values), encoding="utf-8")
    assert_failed(
        build(tiny_text, bad, tmp_path / "d"),
        "tokenizer.json: ",
        "[SEP]",
        "--special-tokens sep=",
    )


def test_a_dataset_is_replaced_only_with_overwrite(tiny_text, tiny_tokenizer, tmp_path):
    prefix = tmp_path / "d"
    (tmp_path / "one.txt").write_text("One sentence.", encoding="utf-8")
    assert build(tiny_text, tiny_tokenizer, prefix, "--lengths", 32).returncode == 0
    assert_failed(build(tmp_path / "one.txt", tiny_tokenizer, prefix), f"{prefix}.bin: ", "--overwrite")
    assert IndexedDataset(prefix).manifest.documents == 40
    assert build(tmp_path / "one.txt", tiny_tokenizer, prefix, "--overwrite", "--lengths", 64).returncode == 0
    assert IndexedDataset(prefix).manifest.documents == 1
    assert not (tmp_path / "d.segments-32.npy").exists()
