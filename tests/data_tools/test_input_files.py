"""Finding input files: folders, links, patterns, and what is left out."""

import os
import socket
from pathlib import Path

import pytest

from data_tools.input_files import Skipped, find_input_files
from elc_bert.utils.errors import UserError


@pytest.fixture
def write(tmp_path):
    """Function that writes a text file of a relative name and returns its path."""

    def write(name: str, text: str = "Text.\n") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def names(inputs) -> list[str]:
    return [str(file.relative) for file in inputs.files]


def test_inputs_are_files_directories_and_globs(tmp_path, write):
    for name in ("b/2.txt", "b/1.txt", "a.txt", "a.md"):
        write(name)
    found = find_input_files([tmp_path / "b", str(tmp_path / "a.*")])
    assert [file.path.name for file in found.files] == ["1.txt", "2.txt", "a.md", "a.txt"]
    with pytest.raises(UserError, match=r"\*\.csv: no such file"):
        find_input_files([tmp_path / "*.csv"])


def test_folders_that_a_pattern_matches_are_searched(tmp_path, write):
    for name in ("year/2022/a.txt", "year/2023/deep/b.txt", "year/c.txt", "year/2022/README"):
        write(name)
    found = find_input_files([tmp_path / "year/*"])
    assert names(found) == ["2022/a.txt", "2023/deep/b.txt", "c.txt"]
    assert found.left_out == [(tmp_path / "year/2022/README", "readme or license")]
    # "**" matches the folders and also the files in them.
    everything = find_input_files([tmp_path / "year/**"])
    assert [file.path for file in everything.files] == [file.path for file in found.files]
    assert everything.left_out == found.left_out


def test_links_to_files_and_folders_are_followed(tmp_path, write):
    write("disk/a.txt")
    write("disk/deep/b.txt")
    c = write("other/c.txt")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/linked").symlink_to(tmp_path / "disk")
    (tmp_path / "in/c.txt").symlink_to(c)
    assert names(find_input_files([tmp_path / "in"])) == ["c.txt", "linked/a.txt", "linked/deep/b.txt"]
    (tmp_path / "top").symlink_to(tmp_path / "in")
    assert names(find_input_files([tmp_path / "top"])) == ["c.txt", "linked/a.txt", "linked/deep/b.txt"]


def test_a_link_to_a_folder_above_it_ends_the_search(tmp_path, write):
    write("in/deep/a.txt")
    (tmp_path / "in/deep/up").symlink_to(tmp_path / "in")
    found = find_input_files([tmp_path / "in"])
    assert names(found) == ["deep/a.txt"]
    assert found.left_out == [(tmp_path / "in/deep/up", "link to a folder above it")]


def test_a_file_is_read_once(tmp_path, write):
    a, b = write("in/a.txt"), write("in/b.txt")
    (tmp_path / "in/c.txt").symlink_to(a)
    os.link(b, tmp_path / "in/d.txt")
    found = find_input_files([b, tmp_path / "in", str(tmp_path / "in/*.txt")])
    assert [file.path for file in found.files] == [b, a]
    assert found.left_out[:3] == [
        (b, f"the same file as {b}"),
        (tmp_path / "in/c.txt", f"the same file as {a}"),
        (tmp_path / "in/d.txt", f"the same file as {b}"),
    ]
    assert len(found.left_out) == 7


NOT_TEXT = {
    "README": "readme or license",
    "ReadMe.MD": "readme or license",
    "readme_en.txt": "readme or license",
    "LICENSE.txt": "readme or license",
    "CITATION.cff": "readme or license",
    "_SUCCESS": "file of another program",
    "_committed_12": "file of another program",
    "dataset_info.json": "file of another program",
    "Thumbs.db": "file of another program",
    "_delta_log/0.json": "file of another program",
    "__MACOSX/a.txt": "file of another program",
    "part-0.txt.crc": "checksums",
    "a.txt.md5": "checksums",
    "SHA256SUMS": "checksums",
    "a.txt~": "backup or unfinished file",
    "#a.txt#": "backup or unfinished file",
    "a.txt.bak": "backup or unfinished file",
    "a.txt.swp": "backup or unfinished file",
    "a.txt.part": "backup or unfinished file",
    "a.txt.bak.gz": "backup or unfinished file",
    ".hidden": "hidden",
    ".git/a.txt": "hidden",
}


@pytest.mark.parametrize("name", NOT_TEXT)
def test_files_that_are_not_text_are_left_out_and_listed(tmp_path, write, name):
    write("in/a.txt")
    write(f"in/{name}")
    found = find_input_files([tmp_path / "in"])
    top = tmp_path / "in" / Path(name).parts[0]
    assert names(found) == ["a.txt"]
    assert found.left_out == [(top, NOT_TEXT[name])]
    assert found.lines() == [
        "input files: 1, 6 bytes",
        f"  {tmp_path}/in/a.txt: plain text, 6 bytes",
        "left out: 1",
        f"  {top}: {NOT_TEXT[name]}",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "readmethods.txt",
        "_success_story.txt",
        "part-00000",
        "licensed.txt",
        "readme/a.txt",
        "a.txt.2",
        "_a.txt",
    ],
)
def test_names_of_text_are_not_left_out(tmp_path, write, name):
    write(f"in/{name}")
    found = find_input_files([tmp_path / "in"])
    assert names(found) == [name]
    assert found.left_out == []


def test_a_file_that_is_named_is_read_whatever_its_name(tmp_path, write):
    paths = [write("README.md"), write(".hidden")]
    assert [file.path for file in find_input_files(paths).files] == paths


def test_a_folder_without_text_is_an_error(tmp_path, write):
    (tmp_path / "empty").mkdir()
    write("in/README")
    with pytest.raises(UserError, match=r"empty: the directory holds no files"):
        find_input_files([tmp_path / "empty"])
    with pytest.raises(UserError, match=r"in: the directory holds no files of text \(1 are left out\)"):
        find_input_files([tmp_path / "in"])


def named_pipe(path: Path) -> str:
    os.mkfifo(path)
    return "a named pipe"


def unix_socket(path: Path) -> str:
    with socket.socket(socket.AF_UNIX) as each:
        each.bind(str(path))
    return "a socket"


def broken_link(path: Path) -> str:
    path.symlink_to("nowhere")
    return "broken symbolic link to nowhere"


def link_to_itself(path: Path) -> str:
    path.symlink_to(path.name)
    return "broken symbolic link to x.txt"


@pytest.mark.parametrize("make", [named_pipe, unix_socket, broken_link, link_to_itself])
def test_what_cannot_be_read_is_an_error_or_is_skipped(tmp_path, monkeypatch, write, make):
    folder = write("in/a.txt").parent
    monkeypatch.chdir(folder)  # the path of a socket must be short
    problem = make(Path("x.txt"))
    for paths in ([folder], [folder / "*.txt"]):
        with pytest.raises(UserError, match=rf"in/x\.txt: {problem}.*--on-error skip"):
            find_input_files(paths)
        skipped = Skipped()
        assert [file.path.name for file in find_input_files(paths, skipped=skipped).files] == ["a.txt"]
        assert skipped.counts == {"unreadable file": 1}
    with pytest.raises(UserError, match=rf"in/x\.txt: {problem}"):
        find_input_files([folder / "x.txt"])


def test_long_lists_are_cut_and_summed_up(tmp_path, write):
    for number in range(12):
        write(f"in/{number:02}.txt")
        write(f"in/{number:02}.txt.crc")
        write(f"in/{number:02}.jsonl", '{"text": "Text."}')
    lines = find_input_files([tmp_path / "in"]).lines()
    assert lines[0] == "input files: 24, 276 bytes"
    assert lines[1] == f"  {tmp_path}/in/00.jsonl: JSON lines, 17 bytes"
    assert lines[11:13] == ["  ... and 14 more", "  in total: 12 x JSON lines; 12 x plain text"]
    assert lines[13] == "left out: 12"
    assert lines[24:] == ["  ... and 2 more", "  in total: 12 x checksums"]
