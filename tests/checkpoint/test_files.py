"""Paths in the configuration of a run."""

import json
import shutil
from pathlib import Path

import pytest

from elc_bert.checkpoint.files import path_in_run
from elc_bert.report.runs import read_run


@pytest.mark.parametrize(
    ("run", "output_dir", "path", "expected"),
    [
        ("work/runs/one", "runs/one", "data/t.json", "work/data/t.json"),
        ("work/runs/one", "./runs/one/", "../t.json", "work/../t.json"),
        ("work/runs/one", "one", "t.json", "work/runs/t.json"),
        ("work/runs/moved", "runs/one", "data/t.json", None),
        ("work/runs/one", "/elsewhere/runs/one", "data/t.json", None),
    ],
)
def test_relative_paths_start_where_the_run_was_started(
    run, output_dir, path, expected, tmp_path, monkeypatch
):
    (tmp_path / run).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    found = path_in_run(tmp_path / run, output_dir, path)
    assert found == (Path(path) if expected is None else tmp_path / expected)
    assert path_in_run(Path("..") / run, output_dir, path) == found
    assert path_in_run(tmp_path / run, output_dir, "/data/t.json") == Path("/data/t.json")


def test_a_report_finds_the_text_of_a_run_from_any_directory(tiny_run, tmp_path, monkeypatch):
    run = tmp_path / "work/runs/one"
    shutil.copytree(tiny_run.directory, run)
    (tmp_path / "work/data").mkdir()
    content = json.loads((run / "config.json").read_text())
    data = content["elc_bert"]["data"]
    shutil.copy(data["tokenizer"], tmp_path / "work/data/tokenizer.json")
    dev = Path(data["dev"])
    for file in dev.parent.glob(f"{dev.name}.*"):
        shutil.copy2(file, tmp_path / "work/data")
    data["tokenizer"], data["dev"] = "data/tokenizer.json", f"data/{dev.name}"
    content["elc_bert"]["training"]["output_dir"] = "runs/one"
    (run / "config.json").write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    loaded = read_run(Path("work/runs/one"), "one")
    assert not loaded.notes
    assert loaded.held_out.score is not None
    assert loaded.held_out.fill_ins
