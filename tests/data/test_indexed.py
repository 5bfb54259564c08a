import pickle
import shutil
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elc_bert.data.indexed import IndexedDataset
from elc_bert.data.manifest import Manifest
from elc_bert.data.writer import IndexedDatasetWriter, token_dtype
from elc_bert.errors import UserError

SENTENCE = st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=9)
DOCUMENTS = st.lists(st.lists(SENTENCE, min_size=1, max_size=4), min_size=1, max_size=6)


def write(prefix, documents, dtype=np.uint16):
    with IndexedDatasetWriter(prefix, dtype) as writer:
        for document in documents:
            writer.add_document(document)
    return writer.written


@given(documents=DOCUMENTS, dtype=st.sampled_from([np.uint16, np.int32, np.int64]))
def test_what_was_written_is_read(tmp_path_factory, documents, dtype):
    prefix = tmp_path_factory.mktemp("data") / "corpus.v1"
    written = write(prefix, documents, dtype)
    dataset = IndexedDataset(prefix)
    ends = np.cumsum(dataset.lengths)
    sentences = [dataset.tokens[end - n : end].tolist() for end, n in zip(ends, dataset.lengths, strict=True)]
    read = [sentences[a:b] for a, b in zip(dataset.documents[:-1], dataset.documents[1:], strict=True)]
    assert read == documents
    assert dataset.tokens.dtype == dtype
    assert dataset.pointers.tolist() == ((ends - dataset.lengths) * dataset.tokens.itemsize).tolist()
    assert (written.documents, written.sequences, written.tokens) == (
        len(documents),
        len(sentences),
        dataset.num_tokens,
    )


def test_the_bytes_are_those_of_the_megatron_format(tmp_path):
    write(tmp_path / "d", [[[7, 8], [9]], [[10]]])
    assert (tmp_path / "d.bin").read_bytes() == struct.pack("<4H", 7, 8, 9, 10)
    assert (tmp_path / "d.idx").read_bytes() == (
        b"MMIDIDX\x00\x00"
        + struct.pack("<QBQQ", 1, 8, 3, 3)
        + struct.pack("<3i", 2, 1, 1)
        + struct.pack("<3q", 0, 4, 6)
        + struct.pack("<3q", 0, 2, 3)
    )


def test_small_vocabularies_take_two_bytes_a_token():
    assert token_dtype(6144) == np.uint16
    assert token_dtype(65536) == np.uint16
    assert token_dtype(65537) == np.int32


def test_a_pickled_copy_opens_the_files_again(tiny_dataset):
    dataset = IndexedDataset(tiny_dataset)
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 1000
    assert np.array_equal(pickle.loads(pickled).tokens, dataset.tokens)


def test_arrays_cannot_be_changed(tiny_dataset):
    with pytest.raises(ValueError, match="read-only"):
        IndexedDataset(tiny_dataset).tokens[0] = 1


def test_a_failure_leaves_the_old_dataset_and_nothing_else(tmp_path):
    write(tmp_path / "d", [[[7]]])
    with pytest.raises(ValueError, match="does not fit"):
        write(tmp_path / "d", [[[8, 9]], [[70000]]])
    assert IndexedDataset(tmp_path / "d").tokens.tolist() == [7]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["d.bin", "d.idx"]


@pytest.fixture
def copy(tiny_dataset, tmp_path):
    for path in tiny_dataset.parent.glob("tiny.*"):
        shutil.copy(path, tmp_path)
    return tmp_path / "tiny"


@pytest.mark.parametrize(
    ("suffix", "damage", "message"),
    [
        (".bin", lambda data: data[:-2], r"tiny\.bin: \d+ bytes, but tiny\.idx describes \d+: truncated"),
        (".bin", lambda data: b"", "empty"),
        (".idx", lambda data: data[:-8], r"tiny\.idx: \d+ bytes, but its header describes \d+: truncated"),
        (".idx", lambda data: data[:20], "truncated within its header"),
        (".idx", lambda data: b"X" + data[1:], "wrong magic"),
        (".idx", lambda data: data[:9] + b"\x02" + data[10:], "version 2"),
        (".idx", lambda data: data[:17] + b"\x63" + data[18:], "dtype code 99"),
        (".idx", lambda data: data[:17] + b"\x04" + data[18:], "truncated or of another"),
        (".idx", lambda data: data[:-8] + bytes(8), "the document index goes from 0 to 0"),
    ],
)
def test_damage_is_found_when_the_dataset_is_opened(copy, suffix, damage, message):
    path = copy.with_suffix(suffix)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=message):
        IndexedDataset(copy)


def test_a_missing_dataset_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.idx: cannot open the dataset: No such file"):
        IndexedDataset(tmp_path / "nowhere")


def test_the_manifest_must_fit_the_dataset(copy):
    manifest = Manifest.load(copy)
    assert IndexedDataset(copy).manifest == manifest
    path = Manifest.path(copy)
    path.write_text(path.read_text().replace(f'"tokens": {manifest.tokens}', '"tokens": 5'))
    with pytest.raises(UserError, match="says 5 tokens"):
        _ = IndexedDataset(copy).manifest
    path.write_text("{}")
    with pytest.raises(UserError, match="not a manifest"):
        _ = IndexedDataset(copy).manifest


def test_a_dataset_built_elsewhere_needs_no_manifest(copy):
    Manifest.path(copy).unlink()
    manifest = IndexedDataset(copy).manifest
    assert manifest.documents == 40
    assert manifest.vocab_size is None
