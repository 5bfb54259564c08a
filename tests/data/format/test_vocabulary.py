import json
import os
import shutil
from dataclasses import replace

import pytest

from data_tools.build import build_dataset
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.text_with_masks import accept_special_tokens
from elc_bert.data.format.vocabulary import (
    PAR,
    SPECIAL_TOKENS,
    USUAL_TOKENS,
    SpecialNames,
    SpecialTokens,
    check_tokenizer,
    load_tokenizer,
    special_tokens,
)
from elc_bert.utils.errors import UserError
from tests.support.angle_tokenizer import ANGLE_NAMES, with_angle_names


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_small_104.json", "tokenizer_small_68.json"])
def test_published_tokenizers_open(shared, name):
    tokenizer = load_tokenizer(shared / "tokenizers" / name)
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(7))


def test_an_invalid_tokenizer_is_a_user_error(tmp_path, tiny_tokenizer):
    with pytest.raises(UserError, match=r"none\.json: cannot read the tokenizer: No such file"):
        load_tokenizer(tmp_path / "none.json")
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(UserError, match=r"pipe\.json: cannot read the tokenizer: not a regular file"):
        load_tokenizer(tmp_path / "pipe.json")
    path = tmp_path / "other.json"
    path.write_text("{}")
    with pytest.raises(UserError, match="not a tokenizer"):
        load_tokenizer(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        load_tokenizer(path)


def test_a_byte_order_mark_is_ignored(tmp_path, tiny_tokenizer, tiny_dataset):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(b"\xef\xbb\xbf" + tiny_tokenizer.read_bytes())
    assert load_tokenizer(path).to_str() == load_tokenizer(tiny_tokenizer).to_str()
    check_tokenizer(IndexedDataset(tiny_dataset), path)


def written(folder, values):
    path = folder / "tokenizer.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values), encoding="utf-8")
    return path


def test_special_tokens_are_found_by_name(tmp_path, tiny_tokenizer):
    values = json.loads(tiny_tokenizer.read_text(encoding="utf-8"))
    values["model"]["vocab"]["[CLS]"], values["model"]["vocab"]["[SEP]"] = 2, 1
    for token in values["added_tokens"]:
        token["id"] = {1: 2, 2: 1}.get(token["id"], token["id"])
    tokenizer = load_tokenizer(written(tmp_path, values))
    assert special_tokens(tokenizer) == SpecialTokens(cls=2, sep=1)
    assert (
        special_tokens(load_tokenizer(tiny_tokenizer)) == USUAL_TOKENS == SpecialTokens(0, 1, 2, 3, 4, 5, 6)
    )


def test_special_tokens_may_have_other_names(tmp_path, tiny_tokenizer):
    path = written(tmp_path, with_angle_names(tiny_tokenizer))
    expected = SpecialTokens(unk=511, cls=510, sep=509, pad=508, mask=507, par=None, tab=None)
    assert special_tokens(load_tokenizer(path, ANGLE_NAMES), ANGLE_NAMES) == expected
    names = replace(ANGLE_NAMES, par="<par>", tab="<tab>")
    assert special_tokens(load_tokenizer(path, names), names) == replace(expected, par=506, tab=505)
    assert load_tokenizer(path, None).get_vocab_size() == 512
    with pytest.raises(UserError, match=r"no token \[UNK\] for the role unk .*<unk>.*special_tokens\.unk"):
        load_tokenizer(path)


def changed(tokenizer, path, change):
    """Write a copy of a tokenizer file whose content a function has changed."""
    values = json.loads(tokenizer.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def undeclared(values):
    values["added_tokens"] = [each for each in values["added_tokens"] if each["id"] < 3]


def not_special(values):
    for token in values["added_tokens"]:
        token["special"] = False


@pytest.mark.parametrize("change", [undeclared, not_special])
def test_special_tokens_in_the_vocabulary_need_not_be_declared(change, tmp_path, tiny_tokenizer, tiny_text):
    path = changed(tiny_tokenizer, tmp_path / "tokenizer.json", change)
    plain, tokenizer = load_tokenizer(tiny_tokenizer), load_tokenizer(path)
    for number, name in enumerate(SPECIAL_TOKENS):
        assert tokenizer.encode(name, add_special_tokens=False).ids == [number]
        assert tokenizer.decode([number]) == ""
    assert tokenizer.get_vocab() == plain.get_vocab()
    line = tiny_text.read_text(encoding="utf-8").splitlines()[0]
    assert tokenizer.encode(line).ids == plain.encode(line).ids
    masked = f"{line} [MASK]."
    accepting = [accept_special_tokens(each).encode(masked).ids for each in (plain, tokenizer)]
    assert accepting[0] == accepting[1]
    build_dataset([tiny_text], path, tmp_path / "d")
    build_dataset([tiny_text], tiny_tokenizer, tmp_path / "e")
    dataset = IndexedDataset(tmp_path / "d")
    tokenizer.save(str(tmp_path / "declared.json"))  # as an export does
    check_tokenizer(dataset, tmp_path / "declared.json")
    assert dataset.tokens.tolist() == IndexedDataset(tmp_path / "e").tokens.tolist()
    assert (dataset.tokens == PAR).sum() > 100


def test_a_special_token_that_is_encoded_as_something_else_is_a_user_error(tmp_path, tiny_tokenizer):
    def normalized(values):
        values["normalizer"] = {"type": "Prepend", "prepend": "_"}
        values["added_tokens"][1]["normalized"] = True

    path = changed(tiny_tokenizer, tmp_path / "tokenizer.json", normalized)
    with pytest.raises(
        UserError, match=r"tokenizer\.json: encodes 'a \[CLS\] a' as the ids .*, without id 1; "
    ):
        load_tokenizer(path)


def test_other_names_of_special_tokens_have_to_be_given(tmp_path, tiny_tokenizer):
    def renamed(values):
        values["model"]["vocab"]["<mask>"] = values["model"]["vocab"].pop("[MASK]")
        values["added_tokens"][4]["content"] = "<mask>"

    path = changed(tiny_tokenizer, tmp_path / "tokenizer.json", renamed)
    with pytest.raises(UserError) as caught:
        load_tokenizer(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: has no token [MASK] for the role mask ")
    assert "<mask>" in message
    assert "\n" not in message
    assert "elc_bert.data.special_tokens.mask" in message
    assert "--special-tokens mask=NAME" in message
    assert "data_tools tokenizer --input TEXT --output" in message
    names = SpecialNames(mask="<mask>")
    assert special_tokens(load_tokenizer(path, names), names) == USUAL_TOKENS


def test_par_and_tab_are_optional_unless_they_are_named(tmp_path, tiny_tokenizer):
    values = json.loads(tiny_tokenizer.read_text(encoding="utf-8"))
    for number, name in ((5, "[PAR]"), (6, "[TAB]")):
        values["added_tokens"] = [each for each in values["added_tokens"] if each["content"] != name]
        del values["model"]["vocab"][name]
        values["model"]["vocab"][f"word {number}"] = number
    path = written(tmp_path, values)
    assert special_tokens(load_tokenizer(path)) == SpecialTokens(par=None, tab=None)
    for role in ("par", "tab"):
        with pytest.raises(UserError, match=f"no token <p> for the role {role} "):
            load_tokenizer(path, SpecialNames(**{role: "<p>"}))


def test_two_roles_have_different_tokens(tmp_path, tiny_tokenizer):
    with pytest.raises(UserError, match=r"cls and mask are both \[CLS\]"):
        load_tokenizer(tiny_tokenizer, SpecialNames(mask="[CLS]"))
    same = SpecialNames(sep="[CLS]")
    assert special_tokens(load_tokenizer(tiny_tokenizer, same), same) == SpecialTokens(sep=1)


def test_roles_decide_what_is_masked_and_drawn():
    special = SpecialTokens(10, 11, 12, 13, 14, 15, 16)
    assert special.never_drawn == {10, 11, 12, 13, 14}
    assert special.never_masked == {10, 11, 12, 13, 14, 15}
    assert special.all == {10, 11, 12, 13, 14, 15, 16}
    without = SpecialTokens(10, 11, 12, 13, 14, None, None)
    assert without.never_drawn == without.never_masked == without.all == {10, 11, 12, 13, 14}


def test_changes_are_the_names_that_are_not_usual():
    assert SpecialNames().changes() == {}
    assert SpecialNames(mask="<mask>", par=None).changes() == {"mask": "<mask>", "par": None}
    assert SpecialNames.from_mapping({"mask": "<mask>", "par": None}) == SpecialNames(mask="<mask>", par=None)


def test_ids_without_a_subword_are_a_user_error(tmp_path, tiny_tokenizer):
    values = json.loads(tiny_tokenizer.read_text(encoding="utf-8"))
    values["model"]["vocab"]["gap"] = 700
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(UserError, match="513 subwords, but ids up to 700"):
        load_tokenizer(path)


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path, tiny_tokenizer):
    tokenizer = load_tokenizer(tiny_tokenizer)
    expected = tokenizer.encode("Some words that are encoded.").ids
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=100)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path / "tokenizer.json").encode("Some words that are encoded.").ids == expected


def test_a_dataset_requires_its_own_tokenizer(tiny_dataset, tiny_tokenizer, tmp_path):
    for path in tiny_dataset.parent.glob("tiny.*"):
        shutil.copy(path, tmp_path)
    dataset = IndexedDataset(tmp_path / "tiny")
    check_tokenizer(dataset, tiny_tokenizer)
    dataset.manifest.model_copy(update={"vocab_size": 400}).save(dataset.prefix)
    with pytest.raises(UserError, match="512 subwords, but"):
        check_tokenizer(dataset, tiny_tokenizer)
