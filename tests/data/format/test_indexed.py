import os
import pickle
import shutil
import struct
import subprocess
import sys
import threading

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.manifest import Manifest
from elc_bert.data.format.writer import IndexedDatasetWriter, token_dtype
from elc_bert.utils.errors import UserError
from tests.data.format import foreign

SENTENCE = st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=9)
DOCUMENTS = st.lists(st.lists(SENTENCE, min_size=1, max_size=4), min_size=1, max_size=6)


def write(prefix, documents, dtype=np.uint16):
    with IndexedDatasetWriter(prefix, dtype) as writer:
        for document in documents:
            writer.add_document(document)
    return writer.written


@given(documents=DOCUMENTS, dtype=st.sampled_from([np.uint16, np.int32, np.int64]))
def test_written_documents_are_read_back(tmp_path_factory, documents, dtype):
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


def test_the_bytes_match_the_megatron_format(tmp_path):
    write(tmp_path / "d", [[[7, 8], [9]], [[10]]])
    assert (tmp_path / "d.bin").read_bytes() == struct.pack("<4H", 7, 8, 9, 10)
    assert (tmp_path / "d.idx").read_bytes() == (
        b"MMIDIDX\x00\x00"
        + struct.pack("<QBQQ", 1, 8, 3, 3)
        + struct.pack("<3i", 2, 1, 1)
        + struct.pack("<3q", 0, 4, 6)
        + struct.pack("<3q", 0, 2, 3)
    )


def test_small_vocabularies_take_two_bytes_per_token():
    assert token_dtype(6144) == np.uint16
    assert token_dtype(65536) == np.uint16
    assert token_dtype(65537) == np.int32


def test_a_pickled_copy_reopens_the_files(tiny_dataset):
    dataset = IndexedDataset(tiny_dataset)
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 1000
    assert np.array_equal(pickle.loads(pickled).tokens, dataset.tokens)


def test_arrays_cannot_be_changed(tiny_dataset):
    with pytest.raises(ValueError, match="read-only"):
        IndexedDataset(tiny_dataset).tokens[0] = 1


def test_a_failure_keeps_the_old_dataset_and_leaves_no_other_files(tmp_path):
    write(tmp_path / "d", [[[7]]])
    with pytest.raises(UserError, match="do not fit into uint16"):
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
        (".bin", lambda data: data[:-2], r"tiny\.bin: truncated .*tiny\.idx expects \d+ bytes, found \d+"),
        (".bin", lambda data: b"", "empty"),
        (
            ".idx",
            lambda data: data[:-8],
            r"tiny\.idx: truncated or damaged \(expected \d+ bytes, found \d+\)",
        ),
        (".idx", lambda data: data[:20], "truncated within its header"),
        (".idx", lambda data: b"X" + data[1:], "wrong magic"),
        (".idx", lambda data: data[:9] + b"\x02" + data[10:], "version 2"),
        (".idx", lambda data: data[:17] + b"\x63" + data[18:], "dtype code 99"),
        (".idx", lambda data: data[:17] + b"\x04" + data[18:], "truncated or from another"),
        (".idx", lambda data: data[:17] + b"\x06" + data[18:], "dtype code 6 is not an integer"),
        (".idx", lambda data: data[:18] + b"\xff" * 16 + data[34:], "expected 3689348814741910"),
        (".idx", lambda data: data[:18] + bytes(16), "empty"),
        (".idx", lambda data: b"", "wrong magic"),
        (".idx", lambda data: data[:-8] + bytes(8), "the document index runs from 0 to 0"),
        (".bin", lambda data: data + b"x", "from another dataset"),
    ],
)
def test_damage_is_found_when_the_dataset_is_opened(copy, suffix, damage, message):
    path = copy.with_suffix(suffix)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=message):
        IndexedDataset(copy)


def test_directories_and_pipes_are_user_errors(copy):
    for suffix in (".idx", ".bin"):
        path = copy.with_suffix(suffix)
        content = path.read_bytes()
        for make in (os.mkdir, os.mkfifo):
            path.unlink()
            make(path)
            with pytest.raises(
                UserError, match=rf"tiny\{suffix}: cannot open the dataset: not a regular file"
            ):
                IndexedDataset(copy)
            path.rmdir() if path.is_dir() else path.unlink()
            path.write_bytes(content)


def test_a_missing_dataset_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.idx: cannot open the dataset: No such file"):
        IndexedDataset(tmp_path / "nowhere")


def test_the_manifest_must_match_the_dataset(copy):
    manifest = Manifest.load(copy)
    assert IndexedDataset(copy).manifest == manifest
    path = Manifest.path(copy)
    path.write_text(path.read_text().replace(f'"tokens": {manifest.tokens}', '"tokens": 5'))
    with pytest.raises(UserError, match=r"tiny\.json: lists 5 tokens"):
        _ = IndexedDataset(copy).manifest
    path.write_text(manifest.model_copy(update={"vocab_size": 65_537}).to_json())
    with pytest.raises(UserError, match=r"vocabulary of 65537, .* uint16.* 65536"):
        _ = IndexedDataset(copy).manifest
    path.write_text("{}")
    with pytest.raises(UserError, match="not a manifest"):
        _ = IndexedDataset(copy).manifest


def test_a_dataset_built_elsewhere_needs_no_manifest(copy):
    Manifest.path(copy).unlink()
    manifest = IndexedDataset(copy).manifest
    assert manifest.documents == 40
    assert manifest.vocab_size is None


@given(
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=9).filter(any),
    bounds=st.lists(st.integers(0, 9), max_size=5),
    data=st.data(),
)
def test_spans_and_documents_in_chunks(tmp_path_factory, sizes, bounds, data):
    n = len(sizes)
    bounds = sorted([0, *(min(bound, n) for bound in bounds), n])
    prefix = tmp_path_factory.mktemp("d") / "d"
    foreign.write(prefix, [[1] * size for size in sizes], bounds, code=4)
    dataset = IndexedDataset(prefix)
    first, last = sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))
    offsets, lengths = dataset.spans(first, last)
    assert lengths.tolist() == sizes[first:last]
    assert offsets.tolist() == [sum(sizes[:sentence]) for sentence in range(first, last)]
    first, last = sorted(
        data.draw(st.tuples(st.integers(0, len(bounds) - 1), st.integers(0, len(bounds) - 1)))
    )
    assert dataset.documents_between(first, last).tolist() == bounds[first : last + 1]


HUGE = 2**63 - 4


@pytest.mark.parametrize(
    ("length", "pointer"),
    [(-1, 4), (2, -4), (2**31 - 1, HUGE), (-(2**31), HUGE), (2, HUGE), (2, 5), (2, 8), (3, 4), (1, -(2**63))],
)
def test_a_sentence_outside_of_the_stream_is_found_when_used(tmp_path, length, pointer):
    """Use three sentences in 12 bytes, with four bytes per token."""
    (tmp_path / "d.bin").write_bytes(bytes(12))
    (tmp_path / "d.idx").write_bytes(foreign.index_bytes(4, [1, length, 1], [0, pointer, 8], [0, 3]))
    dataset = IndexedDataset(tmp_path / "d")
    assert dataset.spans(0, 1)[1].tolist() == [1]
    with pytest.raises(UserError, match=rf"d\.idx: sentence 1 \({length} tokens at byte {pointer}\)"):
        dataset.spans(1, 3)


@pytest.mark.parametrize("bad", [-1, 4, 2**63 - 1, -(2**63)])
def test_a_document_out_of_order_is_found_when_used(tmp_path, bad):
    (tmp_path / "d.bin").write_bytes(bytes(3))
    (tmp_path / "d.idx").write_bytes(foreign.index_bytes(1, [1, 1, 1], [0, 1, 2], [0, 1, bad, 2, 3]))
    dataset = IndexedDataset(tmp_path / "d")
    assert dataset.documents_between(0, 1).tolist() == [0, 1]
    for first, last in ((0, 4), (1, 2), (2, 3), (2, 2)):
        with pytest.raises(
            UserError, match=r"d\.idx: document \d starts with sentence -?\d+ of 3, which is out of order"
        ):
            dataset.documents_between(first, last)


def test_gather_is_checked_indexing(tiny_dataset):
    dataset = IndexedDataset(tiny_dataset)
    places = np.array([[0, dataset.num_tokens - 1], [17, 18]])
    assert np.array_equal(dataset.gather(places), dataset.tokens[places])
    assert dataset.gather(places[:0]).shape == (0, 2)
    for bad in (-1, dataset.num_tokens, 2**62):
        with pytest.raises(UserError, match=r"tiny\.bin: positions -?\d+ to \d+ requested"):
            dataset.gather(np.array([0, bad]))


def test_negative_token_ids_are_found_when_read(tmp_path):
    foreign.write(tmp_path / "d", [[1, 2, -5, 3]], [0, 1], code=4)
    dataset = IndexedDataset(tmp_path / "d")
    assert dataset.gather(np.array([0, 1, 3])).tolist() == [1, 2, 3]
    with pytest.raises(UserError, match=r"d\.bin: holds the negative token id -5"):
        dataset.gather(np.arange(4))


def reads_right(dataset, seed):
    """Return whether tokens read at random positions are those of the stream."""
    draw = np.random.default_rng(seed)
    for _ in range(100):
        places = draw.integers(0, dataset.num_tokens - 30, (16, 1)) + np.arange(30)
        if not np.array_equal(dataset.gather(places), dataset.tokens[places]):
            return False
        dataset.release()
    return True


def test_threads_share_a_dataset(tiny_dataset):
    dataset, right = IndexedDataset(tiny_dataset), []
    threads = [
        threading.Thread(target=lambda seed=seed: right.append(reads_right(dataset, seed)))
        for seed in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 8


def test_a_forked_child_shares_the_dataset(tiny_dataset):
    dataset = IndexedDataset(tiny_dataset)
    child = os.fork()
    if child == 0:
        os._exit(0 if reads_right(dataset, 1) else 1)
    assert reads_right(dataset, 2)
    assert os.waitpid(child, 0)[1] == 0


def test_a_read_only_directory_is_enough(copy):
    modes = [(path, path.stat().st_mode) for path in (*copy.parent.iterdir(), copy.parent)]
    try:
        for path, mode in modes:
            path.chmod(mode & ~0o222)
        dataset = IndexedDataset(copy)
        assert reads_right(dataset, 1)
        assert dataset.manifest.documents == 40
    finally:
        for path, mode in modes:
            path.chmod(mode)


TOKENS = 10**10
"""Size of a sparse dataset, 20 GB, which takes no space on disk."""


@pytest.fixture
def huge(tmp_path):
    lengths = [TOKENS // 5] * 5
    pointers = [2 * TOKENS // 5 * number for number in range(5)]
    (tmp_path / "d.idx").write_bytes(foreign.index_bytes(8, lengths, pointers, [0, 2, 5]))
    with open(tmp_path / "d.bin", "wb") as file:
        file.truncate(2 * TOKENS - 2)
        file.seek(0, os.SEEK_END)
        file.write(b"\x07\x00")
    return tmp_path / "d"


def test_opening_and_sampling_map_nothing_of_the_stream(huge):
    """Limit the address space to 1 GB, less than the 20 GB that a mapping of the stream would take."""
    program = f"""
import resource, psutil, numpy as np
from elc_bert.data.format.indexed import IndexedDataset
most = psutil.Process().memory_info().vms + 2**30
resource.setrlimit(resource.RLIMIT_AS, (most, most))
dataset = IndexedDataset({str(huge)!r})
assert dataset.num_tokens == {TOKENS}
assert dataset.gather(np.array([0, {TOKENS} - 1])).tolist() == [0, 7]
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_reading_at_random_keeps_nothing_in_memory(huge):
    dataset = IndexedDataset(huge)
    process = psutil.Process()
    before = process.memory_info().rss
    draw = np.random.default_rng(1)
    for _ in range(2000):
        places = draw.integers(0, 2**31, (100, 1)) + np.arange(126)
        assert not dataset.gather(places).any()
    assert process.memory_info().rss - before < 20e6
