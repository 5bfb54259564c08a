"""Folders that an export may and may not replace."""

import errno
import itertools
import os

import pytest

from elc_bert.hub.export import CODE, check_target, export
from elc_bert.model.loaded import LoadedModel
from elc_bert.utils.errors import UserError
from tests.hub.test_export import random_model

FILES = ("config.json", *CODE)
SOME = [files for count in (1, 2) for files in itertools.combinations(FILES, count)]


@pytest.mark.parametrize("files", [*SOME, ("README.md",), ("model.safetensors", "tokenizer.json")])
@pytest.mark.parametrize("force", [False, True])
def test_a_folder_with_some_files_of_an_export_only_is_not_replaced(tmp_path, files, force):
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="exists and is not an earlier export; choose another folder"):
        check_target(tmp_path, force)


def test_an_earlier_export_is_replaced_with_force_only(tmp_path):
    for name in FILES:
        (tmp_path / name).write_text("{}")
    check_target(tmp_path, force=True)
    with pytest.raises(UserError, match=r"exists; .* --force"):
        check_target(tmp_path, force=False)


def test_new_and_empty_folders_need_no_force(tmp_path):
    check_target(tmp_path / "new", force=False)
    check_target(tmp_path, force=False)


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "file").write_text("text")
    with pytest.raises(UserError, match="not an earlier export"):
        check_target(tmp_path / "file", force=True)


@pytest.mark.parametrize("replaced", range(9))
def test_an_export_that_is_interrupted_cannot_be_loaded(tiny_tokenizer, tmp_path, monkeypatch, replaced):
    """New weights with the old configuration could be of another variant, which has the same tensors."""
    folder = tmp_path / "export"
    export(LoadedModel(random_model("zero"), None), tiny_tokenizer, folder)
    rename, renamed = os.replace, itertools.count()

    def fail_at_last(source, target):
        if next(renamed) == replaced:
            raise OSError(errno.EIO, "Input/output error", str(target))
        rename(source, target)

    monkeypatch.setattr(os, "replace", fail_at_last)
    with pytest.raises(UserError, match="cannot be written"):
        export(LoadedModel(random_model("base"), None), tiny_tokenizer, folder, force=True)
    monkeypatch.undo()
    assert not (folder / "config.json").exists()
