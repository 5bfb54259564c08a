import json
import os
import shutil

import pytest

from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.vocabulary import SPECIAL_TOKENS, check_tokenizer, load_tokenizer
from elc_bert.utils.errors import UserError


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


def test_special_tokens_must_have_their_ids(tmp_path, tiny_tokenizer):
    values = json.loads(tiny_tokenizer.read_text(encoding="utf-8"))
    values["model"]["vocab"]["[CLS]"], values["model"]["vocab"]["[SEP]"] = 2, 1
    for token in values["added_tokens"]:
        token["id"] = {1: 2, 2: 1}.get(token["id"], token["id"])
    path = tmp_path / "swapped.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(UserError, match=r"\[CLS\] must have id 1, found 2"):
        load_tokenizer(path)


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
