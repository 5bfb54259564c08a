"""Output of the commands on terminals of every encoding, and without a terminal."""

import re
import shutil

import pytest

from data_tools import progress
from data_tools.__main__ import main
from tests.data_tools.running import run


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_every_command_prints_on_a_terminal_that_is_not_utf_8(tiny_text, tiny_tokenizer, tmp_path, encoding):
    folder = tmp_path / "\u6587\u5b57"
    folder.mkdir()
    text = folder / "\u6587.txt"
    text.write_text(tiny_text.read_text("utf-8") + "\u6587\u5b57 \u2013 caf\u00e9.\n", encoding="utf-8")
    shutil.copy(tiny_tokenizer, folder / "tokenizer.json")
    dataset, tokenizer = folder / "\u96c6", folder / "tokenizer.json"
    for arguments in (
        ["clean", "--input", text, "--output", folder / "clean"],
        ["tokenizer", "--input", text, "--vocab-size", 400, "--min-frequency", 2,
         "--output", folder / "t.json"],
        ["build", "--input", text, "--tokenizer", tokenizer, "--output", dataset, "--lengths", 32],
        ["segments", dataset, "--lengths", 64],
        ["merge", "--input", dataset, "--output", folder / "\u5408"],
        ["split", dataset, "--output-train", folder / "a\u00e9", "--output-dev", folder / "b\u00e9",
         "--dev-fraction", 0.3],
        ["inspect", dataset, "--tokenizer", tokenizer, "--documents", 41, "--full"],
        ["verify", dataset],
    ):  # fmt: skip
        done = run(*arguments, encoding=encoding)
        assert done.returncode == 0, done.stderr
        assert "UnicodeEncodeError" not in done.stderr
        if arguments[0] == "inspect":
            assert "#" * 40 in done.stdout
            assert "\\u6587" in done.stdout


def test_long_work_prints_lines_where_there_is_no_terminal(
    tiny_text, tiny_tokenizer, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    dataset, merged = tmp_path / "d", tmp_path / "m"
    titles = {
        "prose": ["--output", tmp_path / "prose", "--max-words", 3000, "--dev-fraction", 0],
        "clean": ["--input", tiny_text, "--output", tmp_path / "clean", "--workers", 1],
        "tokenizer": ["--input", tiny_text, "--vocab-size", 400, "--min-frequency", 2,
                      "--output", tmp_path / "t.json"],
        "build": ["--input", tiny_text, "--tokenizer", tiny_tokenizer, "--output", dataset, "--lengths", 32,
                  "--workers", 1],
        "segments": [dataset, "--lengths", 64],
        "merge": ["--input", dataset, "--output", merged],
        "split": [dataset, "--output-train", tmp_path / "a", "--output-dev", tmp_path / "b",
                  "--dev-fraction", 0.3],
        "inspect": [dataset],
        "verify": [dataset],
    }  # fmt: skip
    for command, arguments in titles.items():
        assert main([command, *map(str, arguments)]) == 0
        output = capsys.readouterr().err
        assert re.search(r"\d % \(.*/s", output), (command, output)
        assert not re.search(r"[\r\x1b]|\n\n|\n$.", output), (command, output)
