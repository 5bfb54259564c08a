"""The command ``prose`` on a small tree of modules and text files."""

import argparse
from pathlib import Path

import pytest

from data_tools import prose
from elc_bert.utils.errors import UserError
from tests.data_tools.running import assert_rejected, run

MODULE = '''
"""This module opens the doors of the house.

Usage::

    This is code and not a sentence of English.

=====  =======================
door   The side that it is on.
=====  =======================

    >>> open_door()
    This is the output of the code above.

The doors are opened in the order in which they were built.
"""

HELP = """
The help is kept in a string that is no docstring
of anything.
"""


class Door:
    """A door that can be opened and closed.

    Args:
        side (str): The side of the house that the door is on.
    """

    def open(self):
        """Open the :class:`Door`, which must be *closed* before."""
        return "This string is a value and not documentation."
'''

MODULE_PROSE = [
    "This module opens the doors of the house.",
    "The doors are opened in the order in which they were built.",
    "The help is kept in a string that is no docstring of anything.",
    "A door that can be opened and closed.",
    "Open the Door, which must be closed before.",
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Tree with a module, some files that cannot be read, and many small documents."""
    root = tmp_path / "tree"
    files = {
        "house/doors.py": MODULE.encode(),
        "house/broken.py": b'"""This module is not Python at all."""\ndef (',
        "house/README.md": b"# House\n\nThis is the readme of the house and its garden.\n",
        "house/latin.txt": "This caf\u00e9 is written in another encoding.".encode("latin-1"),
        "house/LICENSE.txt": b"You may do with it what you want.",
        "house/tests/test_doors.py": b'"""These are the tests of the doors."""',
    }
    # There are enough further documents for both files. Each has a unique sentence and a common one.
    for number in range(40):
        text = f"This is the document with the number {number} in it.\n\nThis is the one line that all share."
        files[f"rooms/room_{number}.py"] = f'"""{text}"""'.encode()
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def extract(tree: Path, output: Path, **options) -> tuple[prose.Extraction, str, str]:
    output.mkdir()
    extraction = prose.extract({"tree": tree}, output, **options)
    return extraction, (output / "train.txt").read_text("utf-8"), (output / "dev.txt").read_text("utf-8")


def test_the_prose_of_a_module_in_reading_order(tree):
    assert prose.document_prose(tree / "house/doors.py") == MODULE_PROSE


def test_files_that_cannot_be_read_or_parsed_give_none(tree):
    for name in ("house/broken.py", "house/latin.txt", "house/missing.py"):
        assert prose.document_prose(tree / name) is None


def test_licenses_and_tests_are_not_documents(tree):
    names = prose.find_documents({"tree": tree})
    assert "tree/house/doors.py" in names
    assert not [name for name in names if "LICENSE" in name or "test_doors" in name]


def test_every_document_is_written_once(tree, tmp_path):
    extraction, train, dev = extract(tree, tmp_path / "out", dev_fraction=0.3)
    documents = [text.splitlines() for part in (train, dev) for text in part.split("\n\n")]
    lines = [line for document in documents for line in document]

    assert MODULE_PROSE in documents
    assert ["This is the readme of the house and its garden."] in documents
    assert len(lines) == len(set(lines)) == len(MODULE_PROSE) + 1 + 40 + 1
    assert not set(train.splitlines()) & set(dev.splitlines()) - {""}
    assert extraction.unreadable == 2
    for part, text in ((extraction.train, train), (extraction.dev, dev)):
        assert part.documents == len(text.split("\n\n"))
        assert part.paragraphs == len(text.split("\n")) - part.documents
        assert part.words == len(text.split())


def test_the_result_depends_only_on_names_and_contents(tree, tmp_path):
    _, *first = extract(tree, tmp_path / "first", dev_fraction=0.3)
    _, *second = extract(tree.rename(tmp_path / "moved"), tmp_path / "second", dev_fraction=0.3)
    assert first == second


def test_a_word_limit_gives_a_prefix_of_the_whole(tree, tmp_path):
    _, *whole = extract(tree, tmp_path / "whole", dev_fraction=0.3)
    extraction, *limited = extract(tree, tmp_path / "limited", dev_fraction=0.3, max_words=200)
    assert all(all_of_it.startswith(some) for all_of_it, some in zip(whole, limited, strict=True))
    longest = max(len(line.split()) for text in whole for line in text.splitlines())
    assert 200 <= extraction.train.words + extraction.dev.words < 200 + longest


def test_an_empty_file_is_an_error_and_leaves_no_files(tree, tmp_path):
    with pytest.raises(UserError, match=r"10 words in train\.txt and 0 in dev\.txt.*--max-words"):
        extract(tree, tmp_path / "out", dev_fraction=0.3, max_words=1)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--dev-fraction", "1"], "--dev-fraction: .*found 1"),
        (["--dev-fraction", "-0.1"], "--dev-fraction: .*-0.1"),
        (["--output", __file__], "--output"),
    ],
)
def test_user_errors_name_the_option(options, named, tmp_path):
    parser = argparse.ArgumentParser()
    prose.add_arguments(parser)
    with pytest.raises(UserError, match=named):
        prose.run(parser.parse_args(["--output", str(tmp_path), *options]))


def test_a_word_limit_must_be_positive(tmp_path):
    done = run("prose", "--output", tmp_path, "--max-words", 0)
    assert_rejected(done, "--max-words", "'0'")
