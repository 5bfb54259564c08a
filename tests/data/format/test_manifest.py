import hashlib
import json
import os

import pytest

from elc_bert.data.format.manifest import InputFile, InputList, Manifest, SegmentsEntry
from elc_bert.utils.errors import UserError
from elc_bert.utils.files import sha256_of

COUNTS = {"sequences": 3, "documents": 1, "tokens": 12}


def entry(length, policy="reference", **changes):
    known = {"file": "d.npy", "count": 1, "tokens": 12, "sha256": "0" * 64}
    return SegmentsEntry(sequence_length=length, policy=policy, **known | changes)


def test_a_saved_manifest_is_loaded(tmp_path):
    manifest = Manifest(**COUNTS, words=9, skipped={"empty": 1}, segments=[entry(32)])
    manifest.save(tmp_path / "d.v1")
    loaded = Manifest.load(tmp_path / "d.v1")
    assert loaded.model_copy(update={"manifest_sha256": None}) == manifest
    assert Manifest.path(tmp_path / "d.v1").read_text() == loaded.to_json() == manifest.to_json()


def test_the_manifest_checksum_excludes_itself():
    text = Manifest(**COUNTS).to_json()
    checksum = json.loads(text)["manifest_sha256"]
    assert hashlib.sha256(text.replace(f'"{checksum}"', "null").encode()).hexdigest() == checksum
    assert checksum != json.loads(Manifest(**COUNTS, words=1).to_json())["manifest_sha256"]


def test_a_manifest_of_an_early_version_keeps_its_bytes(tmp_path):
    """``verify`` compares them, so a field of a later version must not appear in it."""
    manifest = Manifest(**COUNTS)
    assert "tokenizer_fingerprint" not in json.loads(manifest.to_json())
    manifest.save(tmp_path / "d")
    assert Manifest.path(tmp_path / "d").read_text() == Manifest.load(tmp_path / "d").to_json()
    known = manifest.model_copy(update={"tokenizer_fingerprint": "a" * 64})
    assert json.loads(known.to_json())["tokenizer_fingerprint"] == "a" * 64
    assert json.loads(known.to_json())["words"] is None


def input_files(count) -> list[InputFile]:
    return [InputFile(path=f"{n:05}.txt", bytes=n, sha256=f"{n:064}") for n in range(count)]


@pytest.mark.parametrize("count", [0, 1, 100, 101, 20_000])
def test_many_input_files_are_listed_in_a_file_of_their_own(tmp_path, count):
    prefix, inputs = tmp_path / "d", input_files(count)
    Manifest(**COUNTS, inputs=inputs).save(prefix)
    loaded = Manifest.load(prefix)
    assert loaded.read_inputs(prefix) == inputs
    assert Manifest.path(prefix).read_text() == loaded.to_json()
    assert Manifest.path(prefix).stat().st_size < 20_000
    listed = tmp_path / "d.inputs.jsonl"
    assert listed.exists() == (count > 100)
    assert len(loaded.inputs) == (count if count <= 100 else 0)
    if count > 100:
        assert loaded.input_list == InputList(
            file="d.inputs.jsonl", count=count, bytes=sum(range(count)), sha256=sha256_of(listed)
        )
        # Saving again with another segment index keeps the list.
        loaded.with_segments(entry(32)).save(prefix)
        assert Manifest.load(prefix).read_inputs(prefix) == inputs


def test_a_manifest_that_lists_many_input_files_itself_is_read(tmp_path):
    old = Manifest(**COUNTS, inputs=input_files(101))
    Manifest.path(tmp_path / "d").write_text(old.to_json())
    loaded = Manifest.load(tmp_path / "d")
    assert loaded.read_inputs(tmp_path / "d") == old.inputs
    assert loaded.to_json() == old.to_json()


def test_a_damaged_list_of_input_files_is_an_error(tmp_path):
    prefix = tmp_path / "d"
    Manifest(**COUNTS, inputs=input_files(101)).save(prefix)
    listed = tmp_path / "d.inputs.jsonl"
    listed.write_text(listed.read_text().replace("00007.txt", "00008.txt"))
    with pytest.raises(UserError, match=r"d\.inputs\.jsonl: its SHA-256"):
        Manifest.load(prefix).read_inputs(prefix)
    listed.unlink()
    with pytest.raises(UserError, match=r"d\.inputs\.jsonl: cannot read .*No such file"):
        Manifest.load(prefix).read_inputs(prefix)


def test_segments_are_sorted_and_replaced():
    manifest = Manifest(**COUNTS)
    for each in (entry(128), entry(32), entry(64, "packed"), entry(32, count=7)):
        manifest = manifest.with_segments(each)
    found = [(each.policy, each.sequence_length, each.count) for each in manifest.segments]
    assert found == [("packed", 64, 1), ("reference", 32, 7), ("reference", 128, 1)]
    assert manifest.find_segments(32, "reference").count == 7
    assert manifest.find_segments(32, "packed") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "EOF"),
        (b"\xff", "Invalid JSON"),
        (b"[" * 100_000, "Invalid JSON: recursion limit exceeded"),
        (b'{"versions": {"a": "\\ud800"}}', "Invalid JSON"),
        (b'{"sequences": 1, "documents": 1}', "tokens: Field required"),
        (b'{"sequences": 1, "documents": 1, "tokens": -1}', "tokens: Input should be greater"),
        (b'{"sequences": 1, "documents": 1, "tokens": 1e300}', "tokens: Input should be a valid integer"),
        (b'{"sequences": 1, "documents": 1, "tokens": 9223372036854775808}', "less than 9223372036854775808"),
        (b'{"sequences": 1, "documents": 1, "tokens": 1, "token": 1}', "token: Extra inputs"),
        *(
            (
                json.dumps(COUNTS | {"segments": [entry(8).model_dump() | {"file": name}]}).encode(),
                "segments.0.file",
            )
            for name in ("", ".", "..", "a/b", "../d.npy", "\0")
        ),
    ],
)
def test_an_invalid_manifest_is_a_user_error(tmp_path, content, message):
    (tmp_path / "d.json").write_bytes(content)
    with pytest.raises(UserError, match=r"d\.json: not a manifest of this version") as caught:
        Manifest.load(tmp_path / "d")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_directory_is_not_a_manifest(tmp_path):
    (tmp_path / "d.json").mkdir()
    with pytest.raises(UserError, match=r"d\.json: cannot read the manifest: Is a directory"):
        Manifest.load(tmp_path / "d")


def test_a_named_pipe_is_not_a_manifest(tmp_path):
    os.mkfifo(tmp_path / "d.json")
    with pytest.raises(UserError, match=r"d\.json: cannot read the manifest: not a regular file"):
        Manifest.load(tmp_path / "d")
