"""Datasets of tokenizers whose special tokens have other names and ids."""

import re
from dataclasses import replace

import numpy as np
import pytest

from data_tools.__main__ import main
from data_tools.build import build_dataset
from data_tools.merge import merge_datasets
from data_tools.split import split_dataset
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.vocabulary import PAR
from elc_bert.utils.errors import UserError
from tests.data_tools.running import assert_failed
from tests.data_tools.test_build import build
from tests.support.angle_tokenizer import ANGLE_NAMES, with_angle_names


def test_a_tokenizer_with_other_special_tokens(tmp_path, tiny_text, tiny_tokenizer, tiny_dataset):
    """All tokens but the special ones have an id that is lower by 7."""
    path = tmp_path / "angle.json"
    path.write_text(with_angle_names(tiny_tokenizer), encoding="utf-8")
    names = [f"{role}={name}" for role, name in ANGLE_NAMES.changes().items() if name is not None]
    done = build(
        tiny_text, path, tmp_path / "d", "--lengths", 32, "--special-tokens", *names, "par=<par>", "tab="
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"unknown +0.0000%\n", done.stdout)
    dataset, usual = IndexedDataset(tmp_path / "d"), IndexedDataset(tiny_dataset)
    assert dataset.manifest.special_tokens == {**ANGLE_NAMES.changes(), "par": "<par>"}
    expected = np.where(usual.tokens == PAR, 506, usual.tokens.astype(np.int64) - 7)
    assert np.array_equal(dataset.tokens, expected)
    # Without a token for it, the ends of paragraphs are not marked.
    unmarked = tmp_path / "unmarked"
    build_dataset([tiny_text], path, unmarked, names=ANGLE_NAMES, workers=1)
    assert np.array_equal(IndexedDataset(unmarked).tokens, expected[expected != 506])
    assert_failed(build(tiny_text, path, tmp_path / "e"), "angle.json: has no token [UNK]", "unk=NAME")
    for wrong in ("masc=<mask>", "mask=", "mask"):
        done = build(tiny_text, path, tmp_path / "e", "--special-tokens", wrong)
        assert_failed(done, f"--special-tokens {wrong}: ")


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_dataset_with_other_special_tokens_is_shown_and_verified(
    tmp_path, tiny_text, tiny_tokenizer, capsys, command
):
    path = tmp_path / "angle.json"
    path.write_text(with_angle_names(tiny_tokenizer), encoding="utf-8")
    names = type(ANGLE_NAMES).from_mapping({**ANGLE_NAMES.changes(), "par": "<par>"})
    build_dataset([tiny_text], path, tmp_path / "d", lengths=[32], names=names, workers=1)
    assert main([command, str(tmp_path / "d"), "--tokenizer", str(path)]) == 0
    shown = capsys.readouterr().out
    if command == "inspect":
        assert re.search(r"unknown +0\.0000%", shown)
        assert re.search(r"<par>$", shown, re.MULTILINE)


def test_merge_and_split_keep_the_names(tmp_path, tiny_text, tiny_tokenizer):
    path = tmp_path / "angle.json"
    path.write_text(with_angle_names(tiny_tokenizer), encoding="utf-8")
    for name, names in (("a", ANGLE_NAMES), ("b", ANGLE_NAMES), ("c", replace(ANGLE_NAMES, par="<par>"))):
        build_dataset([tiny_text], path, tmp_path / name, lengths=[32], names=names, workers=1)
    merged = merge_datasets([tmp_path / "a", tmp_path / "b"], tmp_path / "ab")
    assert merged.special_tokens == ANGLE_NAMES.changes()
    with pytest.raises(UserError, match=f"{tmp_path / 'c'}: built with other names of special tokens"):
        merge_datasets([tmp_path / "a", tmp_path / "c"], tmp_path / "ac")
    both = split_dataset(tmp_path / "c", tmp_path / "train", tmp_path / "dev", dev_fraction=0.3)
    for manifest in both:
        assert manifest.special_tokens == {**ANGLE_NAMES.changes(), "par": "<par>"}
