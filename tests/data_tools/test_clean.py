"""The command ``clean`` as a user runs it."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_tools.clean import clean
from data_tools.cleaning.parallel import CHUNK_CHARACTERS
from data_tools.input_files import find_input_files
from elc_bert.utils.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
GOLDEN = json.loads((REPOSITORY / "tests/golden/clean.json").read_text(encoding="utf-8"))
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def command(*arguments) -> list[str]:
    return [sys.executable, "-m", "data_tools", "clean", *map(str, arguments)]


def run(*arguments):
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, encoding="utf-8", env=ENVIRONMENT, timeout=120
    )
    assert "Traceback" not in done.stderr
    return done


def text_of(lines) -> str:
    return "".join(line + "\n" for line in lines)


def contents(directory: Path) -> dict[str, bytes]:
    """Return the files below a directory, without the record of ``clean``."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != ".clean.json"
    }


@pytest.fixture
def babylm(tmp_path) -> Path:
    """Folder with the layout of BabyLM 2023, and one file of other text."""
    folder = tmp_path / "babylm"
    for corpus, lines in GOLDEN.items():
        path = folder / ("train" if corpus < "g" else "dev") / f"{corpus}.train"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text_of(lines["input"]), encoding="utf-8")
    (folder / "other.txt").write_text("“Other”   text\n", encoding="utf-8")
    return folder


def test_the_files_of_a_babylm_folder_are_cleaned(babylm, tmp_path):
    done = run("--input", babylm, "--output", tmp_path / "out", "--workers", 2)
    assert done.returncode == 0, done.stderr
    expected = {
        f"{'train' if corpus < 'g' else 'dev'}/{corpus}.train": text_of(lines["output"]).encode()
        for corpus, lines in GOLDEN.items()
    }
    assert contents(tmp_path / "out") == expected | {"other.txt": b'"Other" text\n'}
    assert find_input_files([tmp_path / "out"]).left_out == []
    table = {row.split()[0]: row.split()[1:] for row in done.stdout.splitlines()[1:]}
    assert table["other.txt"] == ["generic", "1", "1", "2", "2"]
    assert table["train/cbt.train"][:3] == ["cbt", "12", "12"]


def test_the_result_does_not_depend_on_the_number_of_workers(babylm, tmp_path):
    large = babylm / "train/aochildes.train"
    large.write_text(large.read_text(encoding="utf-8") * 1500, encoding="utf-8")
    assert large.stat().st_size > 2 * CHUNK_CHARACTERS
    for workers in (1, 2, 3):
        clean(find_input_files([babylm]), tmp_path / f"out{workers}", workers=workers)
    assert contents(tmp_path / "out1") == contents(tmp_path / "out2") == contents(tmp_path / "out3")


def test_existing_files_are_kept_unless_overwrite_is_given(babylm, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "other.txt").write_text("mine\n")
    reports = clean(find_input_files([babylm]), out)
    assert [report.note for report in reports if report.target.name == "other.txt"] == ["exists already"]
    assert (out / "other.txt").read_text() == "mine\n"
    assert len(contents(out)) == 11
    assert {report.note for report in clean(find_input_files([babylm]), out)} == {"exists already"}
    clean(find_input_files([babylm]), out, overwrite=True)
    assert (out / "other.txt").read_text() == '"Other" text\n'


def test_other_rules_or_changed_input_for_an_existing_file_are_an_error(babylm, tmp_path):
    arguments = ["--input", babylm, "--output", tmp_path / "out"]
    assert run(*arguments).returncode == 0
    before = contents(tmp_path / "out")
    done = run(*arguments, "--corpus", "cbt")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"{tmp_path}/out/dev/gutenberg.train: exists already and was cleaned as gutenberg" in done.stderr
    (babylm / "other.txt").write_text("“Changed”   text\n", encoding="utf-8")
    done = run(*arguments)
    assert done.returncode == 1
    assert f"{tmp_path}/out/other.txt: exists already, but {babylm}/other.txt has changed" in done.stderr
    assert contents(tmp_path / "out") == before
    assert run(*arguments, "--corpus", "cbt", "--overwrite").returncode == 0
    assert contents(tmp_path / "out")["other.txt"] == b'"Changed" text\n'
    done = run(*arguments, "--corpus", "cbt")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("exists already") == 11
    assert run(*arguments).returncode == 1


def test_a_file_without_a_record_is_not_said_to_follow_the_rules(babylm, tmp_path):
    out = tmp_path / "out"
    clean(find_input_files([babylm]), out)
    (out / ".clean.json").unlink()
    done = run("--input", babylm, "--output", out, "--corpus", "cbt")
    assert done.returncode == 0, done.stderr
    (row,) = [row.split() for row in done.stdout.splitlines() if row.split()[0] == "other.txt"]
    assert row == ["other.txt", "unknown", "rules", "exists", "already"]


def test_a_file_that_was_not_replaced_keeps_no_false_record(babylm, tmp_path):
    out = tmp_path / "out"
    clean(find_input_files([babylm]), out)
    (babylm / "dev/simple_wikipedia.train").write_bytes(b"\xff\n")
    with pytest.raises(UserError, match="not UTF-8 at byte 0"):
        clean(find_input_files([babylm]), out, corpus="cbt", overwrite=True)
    record = json.loads((out / ".clean.json").read_text())
    assert record["dev/qed.train"][0] == "cbt"
    assert "dev/simple_wikipedia.train" not in record
    assert "other.txt" not in record


def test_a_damaged_record_is_named_and_replaced_with_overwrite(babylm, tmp_path):
    out = tmp_path / "out"
    clean(find_input_files([babylm]), out)
    (out / ".clean.json").write_text("{")
    with pytest.raises(UserError, match=r"out/\.clean\.json: damaged"):
        clean(find_input_files([babylm]), out)
    clean(find_input_files([babylm]), out, overwrite=True)
    assert {report.note for report in clean(find_input_files([babylm]), out)} == {"exists already"}


def test_a_table_is_refused_unless_it_is_called_text(tmp_path):
    path = tmp_path / "caf\udce9.csv"  # a name that is not UTF-8
    path.write_text("a,b\n")
    done = run("--input", path, "--output", tmp_path / "out")
    assert done.returncode == 1
    assert "a table (.csv)" in done.stderr
    assert done.stderr.count("\n") == 1
    done = run("--input", path, "--output", tmp_path / "out", "--format", "text")
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == {path.name: b"a,b\n"}
    assert run("--input", path, "--output", tmp_path / "out", "--format", "text").returncode == 0


def test_what_is_left_out_is_listed(babylm, tmp_path):
    (babylm / "README.md").write_text("About the corpus.\n")
    done = run("--input", babylm, "--output", tmp_path / "out")
    assert f"{babylm}/README.md: readme or license" in done.stdout
    assert "README.md" not in contents(tmp_path / "out")


def test_a_compressed_file_of_any_name_is_cleaned_by_the_rules_of_corpus(tmp_path):
    path = tmp_path / "talk.txt.gz"
    path.write_bytes(gzip.compress(b"is n't it ?\n"))
    clean(find_input_files([path]), tmp_path / "out", corpus="bnc_spoken")
    assert contents(tmp_path / "out") == {"talk.txt": b'"Isn\'t it?"\n'}


BAD = {
    "not_utf8.txt": (b"good\nb\xffd\nlast\n", "not UTF-8 at byte 6", b"good\nlast\n"),
    "nul.txt": (b"good\n\0\nlast", "NUL byte at byte 5", b"good\nlast\n"),
    "long.txt": (b"good\n" + b"x" * (17 << 20) + b"\nlast\n", "line at byte 5", b"good\nlast\n"),
    "empty.txt": (b"", "holds no text", None),
    "blank.txt": (b" \n\n", "holds no text", None),
    "records.jsonl": (b'{"text": "a"}\n', "JSON lines, not plain text", None),
    "broken.txt.gz": (gzip.compress(b"a line of text\n" * 50_000)[:-9], "cannot read", None),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("workers", [1, 2])
def test_bad_input_stops_the_command_and_complete_files_remain(name, workers, tmp_path):
    content, message, _ = BAD[name]
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_text("before\n")
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        clean(find_input_files([folder]), tmp_path / "out", workers=workers)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert contents(tmp_path / "out") == {"a.txt": b"before\n"}


def test_bad_input_is_skipped_and_counted_with_on_error_skip(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, (content, _, _) in BAD.items():
        (folder / name).write_bytes(content)
    done = run("--input", folder, "--output", tmp_path / "out", "--on-error", "skip")
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == {
        name: kept for name, (_, _, kept) in BAD.items() if kept is not None
    }
    for reason, count in {"not UTF-8": 1, "NUL byte": 1, "empty file": 2, "unreadable file": 1}.items():
        rows = [row for row in done.stdout.splitlines() if f" x {reason} " in row]
        assert len(rows) == count, done.stdout


def test_user_errors_are_reported_before_anything_is_written(babylm, tmp_path):
    (tmp_path / "same").mkdir()
    (tmp_path / "same/other.txt").write_text("x\n")
    before = contents(tmp_path)
    for inputs, output, options, message in [
        ([babylm], babylm, {}, f"--output {babylm}: .*inside"),
        ([babylm], babylm / "clean", {}, f"--output {babylm / 'clean'}: .*inside"),
        ([babylm / "other.txt"], babylm, {}, f"--output {babylm}: .*other.txt"),
        ([babylm, tmp_path / "same"], tmp_path / "out", {}, r"out/other\.txt: .*same/other\.txt"),
        ([tmp_path / "none"], tmp_path / "out", {}, "no such file"),
        ([babylm], tmp_path / "out", {"workers": 0}, "--workers: .*0"),
    ]:
        with pytest.raises(UserError, match=message):
            clean(find_input_files(inputs), output, **options)
    assert contents(tmp_path) == before


def test_a_user_error_is_one_line(babylm):
    done = run("--input", babylm, "--output", babylm)
    assert done.returncode == 1
    assert done.stderr.startswith(f"data_tools: error: --output {babylm}: ")
    assert done.stderr.count("\n") == 1
    done = run("--input", babylm, "--output", babylm / "out", "--workers", 0)
    assert done.returncode == 2
    assert "--workers" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_help_text_of_clean_has_examples():
    assert "python -m data_tools clean --input babylm_10M" in run("--help").stdout


def start_and_signal(arguments, unfinished, number) -> tuple[int, str]:
    """Start the command, send a signal when it writes a file, and return its exit status and messages."""
    process = subprocess.Popen(
        command(*arguments),
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Tests that a shell runs in the background ignore Ctrl-C, and child processes inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not list(unfinished.parent.glob(f".{unfinished.name}*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, number)
    _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr


def test_a_killed_command_leaves_a_record_of_the_finished_files(babylm, tmp_path):
    out = tmp_path / "out"
    long = babylm / "z.txt"
    long.write_text("short\n")
    clean(find_input_files([babylm]), out)
    long.write_text("A line of caf\u00e9 text \u2014 to clean.\n" * 200_000, encoding="utf-8")
    arguments = ["--input", babylm, "--output", out, "--workers", 1, "--corpus", "cbt", "--overwrite"]
    status, _ = start_and_signal(arguments, out / "z.txt", signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert (out / "z.txt").read_text() == "short\n"
    # It is unknown what became of the files that were to be replaced, so the record says nothing about them.
    assert json.loads((out / ".clean.json").read_text()) == {}


def test_ctrl_c_keeps_complete_files_and_the_command_can_be_resumed(babylm, tmp_path):
    long = babylm / "z.txt"
    long.write_text("A line of café text — to clean.\n" * 200_000, encoding="utf-8")
    arguments = ["--input", babylm, "--output", tmp_path / "out", "--workers", 2]
    status, stderr = start_and_signal(arguments, tmp_path / "out/z.txt", signal.SIGINT)
    assert status == 130
    assert "Traceback" not in stderr
    complete = contents(tmp_path / "out")
    assert len(complete) == 11
    assert "z.txt" not in complete
    long.write_text("short\n")
    done = run(*arguments)
    assert done.stdout.count("exists already") == 11
    assert contents(tmp_path / "out") == complete | {"z.txt": b"short\n"}
