"""Two tokenizer files are the same tokenizer if they encode ordinary text in the same way."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.manifest import Manifest
from elc_bert.data.format.tokenizer_identity import (
    PROBES,
    is_tokenizer_of,
    origin_of,
    tokenizer_fingerprint,
    tokenizer_sha256,
)
from elc_bert.data.format.vocabulary import SPECIAL_TOKENS, check_tokenizer
from elc_bert.utils.errors import UserError


def changed(source: Path, target: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Write a copy of a tokenizer whose JSON content was changed."""
    content = json.loads(source.read_text(encoding="utf-8"))
    change(content)
    target.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return target


def layout_only(content: dict[str, Any]) -> None:
    """Leave the content as it is; ``changed`` writes it with another indentation."""


def as_exported(content: dict[str, Any]) -> None:
    """Treat blanks as exports do: one before ``[MASK]`` belongs to it, and words get no prefix."""
    (mask,) = (token for token in content["added_tokens"] if token["content"] == "[MASK]")
    mask["lstrip"] = True
    bytes_of_text, *others = content["pre_tokenizer"]["pretokenizers"]
    blank = {"type": "Metaspace", "replacement": " ", "prepend_scheme": "first", "split": False}
    steps = [blank, {**bytes_of_text, "add_prefix_space": False}, *others]
    content["pre_tokenizer"]["pretokenizers"] = steps


def as_published(content: dict[str, Any]) -> None:
    """Treat blanks as the published tokenizers do, the inverse of ``as_exported``."""
    (mask,) = (token for token in content["added_tokens"] if token["content"] == "[MASK]")
    mask["lstrip"] = False
    flags = {"add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    steps = [{"type": "ByteLevel", **flags}, {"type": "Digits", "individual_digits": True}]
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}


def no_post_processor(content: dict[str, Any]) -> None:
    content["post_processor"] = content["decoder"] = None


def truncation_and_padding(content: dict[str, Any]) -> None:
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=4)
    content.update(json.loads(tokenizer.to_str()))


def swapped_ids(content: dict[str, Any]) -> None:
    vocabulary = content["model"]["vocab"]
    one, other = sorted(vocabulary)[-2:]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]


def another_subword(content: dict[str, Any]) -> None:
    vocabulary = content["model"]["vocab"]
    vocabulary["Ġzzzzzz"] = vocabulary.pop(next(name for name in vocabulary if name.startswith("Ġ")))


def lower_case(content: dict[str, Any]) -> None:
    content["normalizer"] = {"type": "Lowercase"}


def rare_normalizer(content: dict[str, Any]) -> None:
    content["normalizer"] = {"type": "Replace", "pattern": {"String": "qzx"}, "content": "qz"}


def whole_numbers(content: dict[str, Any]) -> None:
    content["pre_tokenizer"]["pretokenizers"].pop()


def ascii_digits(content: dict[str, Any]) -> None:
    split = {"type": "Split", "pattern": {"Regex": "[0-9]"}, "behavior": "Isolated", "invert": False}
    content["pre_tokenizer"]["pretokenizers"][-1] = split


def no_first_blank(content: dict[str, Any]) -> None:
    as_published(content)
    content["pre_tokenizer"]["pretokenizers"][0]["add_prefix_space"] = False


def longer_words(content: dict[str, Any]) -> None:
    content["model"]["max_input_chars_per_word"] = 5000


def whole_word(content: dict[str, Any]) -> None:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    number = content["model"]["vocab"]["z"]
    content["added_tokens"].append({"id": number, "content": "z", **flags})


@pytest.mark.parametrize("change", [layout_only, as_published, no_post_processor, truncation_and_padding])
def test_what_does_not_change_the_ids_of_text_is_accepted_in_both_directions(
    change, tiny_dataset, tiny_tokenizer, tiny_text, tmp_path
):
    from data_tools.build import build_dataset

    other = changed(tiny_tokenizer, tmp_path / "tokenizer.json", change)
    assert tokenizer_sha256(other) != tokenizer_sha256(tiny_tokenizer)
    check_tokenizer(IndexedDataset(tiny_dataset), other)
    build_dataset([tiny_text], other, tmp_path / "rebuilt", lengths=[32])
    rebuilt = IndexedDataset(tmp_path / "rebuilt")
    assert rebuilt.manifest.tokenizer_sha256 == tokenizer_sha256(other)
    assert rebuilt.manifest.tokenizer_fingerprint == tokenizer_fingerprint(tiny_tokenizer)
    assert rebuilt.manifest.bin_sha256 == IndexedDataset(tiny_dataset).manifest.bin_sha256
    check_tokenizer(rebuilt, tiny_tokenizer)


DIFFERENT = [
    swapped_ids,
    another_subword,
    lower_case,
    rare_normalizer,
    no_first_blank,
    longer_words,
    whole_word,
]


@pytest.mark.parametrize("change", DIFFERENT)
def test_another_tokenizer_is_refused(change, tiny_dataset, tiny_tokenizer, tmp_path):
    other = changed(tiny_tokenizer, tmp_path / "tokenizer.json", change)
    with pytest.raises(UserError, match=r"tokenizer\.json: not the tokenizer that .* text differently\); "):
        check_tokenizer(IndexedDataset(tiny_dataset), other)


def with_numbers(content: dict[str, Any]) -> None:
    """Exchange two subwords for a number and for a character whose last byte looks like a digit."""
    as_published(content)
    vocabulary = content["model"]["vocab"]
    for subword in ("19", "Â²"):
        vocabulary[subword] = vocabulary.pop(next(name for name in vocabulary if name[:1] == "Ġ" < name))


@pytest.mark.parametrize("change", [whole_numbers, ascii_digits])
def test_digits_cut_in_another_way_are_another_tokenizer(change, tiny_tokenizer, tmp_path):
    first = changed(tiny_tokenizer, tmp_path / "first.json", with_numbers)
    other = changed(first, tmp_path / "other.json", change)
    assert tokenizer_fingerprint(other) != tokenizer_fingerprint(first)


def test_other_merges_are_another_tokenizer(tmp_path):
    letters = {letter: number for number, letter in enumerate([*SPECIAL_TOKENS, *"qzx"])}
    vocabulary = {**letters, "qz": 10, "zx": 11}
    fingerprints = []
    for merges in ([("q", "z"), ("z", "x")], [("z", "x"), ("q", "z")]):
        path = tmp_path / "tokenizer.json"
        Tokenizer(models.BPE(vocabulary, merges)).save(str(path))
        fingerprints.append(tokenizer_fingerprint(path))
        content = json.loads(path.read_text(encoding="utf-8"))
        content["model"]["merges"] = [" ".join(merge) for merge in merges]  # as before tokenizers 0.20
        path.write_text(json.dumps(content), encoding="utf-8")
        assert tokenizer_fingerprint(path) == fingerprints[-1]
    assert fingerprints[0] != fingerprints[1]


def test_other_scores_are_another_tokenizer(tmp_path):
    path = tmp_path / "tokenizer.json"
    fingerprints = set()
    for score in (-1.0, -2.0):
        Tokenizer(models.Unigram([("<unk>", 0.0), ("qz", score)], unk_id=0)).save(str(path))
        fingerprints.add(tokenizer_fingerprint(path))
    assert len(fingerprints) == 2


def test_the_fingerprint_never_changes(tmp_path):
    """Manifests record it, so another way to compute it would make all datasets refuse their tokenizers."""
    names = [*SPECIAL_TOKENS, "Ġ", *"abcdefghijklmnopqrstuvwxyz0123456789", "Ġthe", "ing"]
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", continuing_subword_prefix=""))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.post_processor = processors.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = tokenizer_fingerprint(tmp_path / "tokenizer.json")
    assert found == "bfeee8dc02d37f697fa2db0f500a39f9f7b4ac164fac92779c16e9ba69bd3fe3"


def test_no_probe_holds_a_special_token():
    assert not [token for token in SPECIAL_TOKENS for text in PROBES if token in text]


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_small_104.json", "tokenizer_small_68.json"])
def test_published_tokenizers_equal_their_exported_form_and_differ_from_each_other(shared, name, tmp_path):
    published = shared / "tokenizers" / name
    exported = changed(published, tmp_path / "tokenizer.json", as_exported)
    assert tokenizer_fingerprint(exported) == tokenizer_fingerprint(published)
    others = [path for path in published.parent.glob("*.json") if path.name != name]
    assert tokenizer_fingerprint(published) not in map(tokenizer_fingerprint, others)


@pytest.fixture
def old_dataset(tiny_dataset: Path, tmp_path: Path) -> IndexedDataset:
    """A dataset of a version that did not record fingerprints."""
    for path in tiny_dataset.parent.glob("tiny.*"):
        shutil.copy(path, tmp_path)
    prefix = tmp_path / "tiny"
    Manifest.load(prefix).model_copy(update={"tokenizer_fingerprint": None}).save(prefix)
    assert "fingerprint" not in Manifest.path(prefix).read_text(encoding="utf-8")
    return IndexedDataset(prefix)


def test_an_old_dataset_accepts_its_file_and_an_export_of_it_only(old_dataset, tiny_tokenizer, tmp_path):
    check_tokenizer(old_dataset, tiny_tokenizer)
    export = tmp_path / "export"
    export.mkdir()
    exported = changed(tiny_tokenizer, export / "tokenizer.json", as_published)
    with pytest.raises(UserError, match="the dataset does not say whether they encode text alike"):
        check_tokenizer(old_dataset, exported)
    settings = export / "tokenizer_config.json"
    settings.write_text(json.dumps(origin_of(tiny_tokenizer)), encoding="utf-8")
    check_tokenizer(old_dataset, exported)
    assert origin_of(exported) == origin_of(tiny_tokenizer), "an export of the export has the same origin"

    changed(exported, exported, lower_case)
    assert not is_tokenizer_of(old_dataset.manifest, exported), "changed after the export"
    assert origin_of(exported)["origin_sha256"] == tokenizer_sha256(exported)
    settings.write_text("[]", encoding="utf-8")
    assert not is_tokenizer_of(old_dataset.manifest, exported)
