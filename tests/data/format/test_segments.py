import json
import multiprocessing
import pickle
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.build import build_dataset
from elc_bert.data.format import manifest
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.policies import packed_segments, reference_segments
from elc_bert.data.format.segments import SEGMENT, build_segments, open_segments
from elc_bert.utils.errors import UserError
from tests.data.format import foreign

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/segments.json").read_text(encoding="utf-8"))
GOLDEN_SEGMENTS = GOLDEN["segments_by_tokenizer_and_sequence_length"]


@pytest.mark.parametrize("case", GOLDEN_SEGMENTS)
def test_segments_are_those_of_the_reference(case, shared, tmp_path):
    tokenizer, length = case.split(":")
    text = tmp_path / "text.txt"
    text.write_text(GOLDEN["segmented_text"], encoding="utf-8")
    build_dataset(
        [text], shared / "tokenizers" / tokenizer, tmp_path / "d", lengths=[int(length)], sentences="lines"
    )
    dataset = IndexedDataset(tmp_path / "d")
    index = open_segments(dataset, int(length))
    slices = zip(*index(np.arange(len(index))), strict=True)
    assert [dataset.tokens[a : a + n].tolist() for a, n in slices] == GOLDEN_SEGMENTS[case]


def segments_plainly(documents, limit):
    """Define the reference policy on lists of tokens."""
    result = []
    for sentences in documents:
        segment = []
        for sentence in sentences:
            segment = segment + sentence
            if len(segment) > limit:
                result.append(segment[:limit])
                segment = sentence
        if segment:
            result.append(segment[:limit])
    return result


def dataset_of(prefix, sizes):
    """Write a dataset with the given sentence lengths; return it and its documents."""
    stream = iter(range(10**6))
    documents = [[[next(stream) for _ in range(size)] for size in document] for document in sizes]
    sentences = [sentence for document in documents for sentence in document]
    foreign.write(prefix, sentences, np.cumsum([0, *map(len, documents)]).tolist(), code=4)
    return IndexedDataset(prefix), documents


def tokens_of(dataset, segments):
    return [dataset.tokens[a : a + n].tolist() for a, n in np.concatenate(list(segments)).tolist()]


@settings(deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(0, 12) | st.just(0), max_size=12), min_size=1, max_size=8),
    limit=st.integers(1, 15),
    chunk_size=st.integers(1, 9) | st.just(1000),
)
def test_segments_do_not_depend_on_the_window_size(tmp_path_factory, sizes, limit, chunk_size):
    if sum(map(sum, sizes)) == 0:
        sizes = [*sizes, [1]]
    dataset, documents = dataset_of(tmp_path_factory.mktemp("d") / "d", sizes)
    assert tokens_of(dataset, reference_segments(dataset, limit, chunk_size)) == segments_plainly(
        documents, limit
    )


@given(size=st.integers(1, 100), limit=st.integers(1, 15), chunk_size=st.integers(1, 9))
def test_packed_segments_are_slices_of_the_stream(tmp_path_factory, size, limit, chunk_size):
    dataset, _ = dataset_of(tmp_path_factory.mktemp("d") / "d", [[size // 2], [size - size // 2]])
    slices = [list(range(size))[first : first + limit] for first in range(0, size, limit)]
    assert tokens_of(dataset, packed_segments(dataset, limit, chunk_size)) == slices


def test_memory_does_not_grow_with_a_document(tmp_path):
    peaks = []
    for sentences in (100_000, 400_000):
        lengths = np.full(sentences, 3)
        index = foreign.index_bytes(8, lengths, (np.cumsum(lengths) - 3) * 2, [0, sentences])
        (tmp_path / "d.idx").write_bytes(index)
        with open(tmp_path / "d.bin", "wb") as file:
            file.truncate(6 * sentences)
        dataset = IndexedDataset(tmp_path / "d")
        tracemalloc.start()
        count = sum(map(len, reference_segments(dataset, 30, chunk_size=10_000)))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        # Ten whole sentences; the next segment starts with the last of them.
        assert count == -(-sentences // 10)
    assert peaks[1] < 1.1 * peaks[0]


@pytest.fixture
def dataset(tiny_dataset, tmp_path):
    for path in tiny_dataset.parent.glob("tiny.*"):
        shutil.copy(path, tmp_path)
    return IndexedDataset(tmp_path / "tiny")


def test_the_index_is_a_plain_npy_file_described_in_the_manifest(dataset):
    entry = dataset.manifest.find_segments(32, "reference")
    array = np.load(dataset.prefix.with_name(entry.file), allow_pickle=False)
    assert array.dtype == SEGMENT
    assert len(array) == entry.count == len(open_segments(dataset, 32))
    assert array["length"].sum() == entry.tokens
    assert entry.policy == "reference"


def test_adding_a_length_keeps_the_other_segments(dataset):
    with pytest.raises(UserError, match=r"run: python -m data_tools segments .*tiny --lengths 64$"):
        open_segments(dataset, 64)
    build_segments(dataset, 64)
    assert [entry.sequence_length for entry in dataset.manifest.segments] == [32, 64, 128]
    assert len(open_segments(dataset, 64)) > 0


def test_a_valid_index_is_kept_and_a_damaged_one_rebuilt(dataset):
    path = dataset.prefix.with_name(dataset.manifest.find_segments(32, "reference").file)
    before = path.stat().st_mtime_ns
    build_segments(dataset, 32)
    assert path.stat().st_mtime_ns == before
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    build_segments(dataset, 32)
    assert path.read_bytes() == content


def test_damaged_indexes_are_user_errors(dataset):
    path = dataset.prefix.with_name(dataset.manifest.find_segments(32, "reference").file)
    array = np.load(path)
    path.write_bytes(path.read_bytes()[:-1])
    command = r"build it again with: python -m data_tools segments .*tiny --lengths 32 --overwrite$"
    with pytest.raises(
        UserError, match=rf"the segment index is truncated.*expected \d+ bytes, found \d+.*{command}"
    ):
        open_segments(dataset, 32)
    np.save(path, array[:-1])
    with pytest.raises(UserError, match=r"\d+ segments, but the manifest lists \d+"):
        open_segments(dataset, 32)
    np.save(path, array["offset"])
    with pytest.raises(UserError, match="not a segment index"):
        open_segments(dataset, 32)
    path.unlink()
    with pytest.raises(UserError, match="No such file"):
        open_segments(dataset, 32)


NUMPY = b"\x93NUMPY\x01\x00"
DESCR = "[('offset', '<i8'), ('length', '<i4')]"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        NUMPY,
        NUMPY + b"\xff\xff" + bytes(70_000),
        NUMPY + b"\x80\x25" + b"(" * 9600,
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(100),
        *(
            NUMPY + len(header).to_bytes(2, "little") + header.encode() + bytes(24)
            for header in (
                f"{{'descr': {DESCR}, 'fortran_order': False, 'shape': (-2,), }}\n",
                f"{{'descr': {DESCR}, 'fortran_order': False, 'shape': (2, 1), }}\n",
                f"{{'descr': {DESCR}, 'fortran_order': False, 'shape': (1{'0' * 30},), }}\n",
                f"{{'descr': {DESCR}, 'fortran_order': False, 'shape': (9999999999999999999,), }}\n",
                "{'descr': '|O', 'fortran_order': False, 'shape': (2,), }\n",
                "__import__('os').abort()\n",
            )
        ),
    ],
    ids=repr,
)
def test_any_damaged_npy_header_is_a_user_error(dataset, content):
    dataset.prefix.with_name("tiny.segments-32.npy").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(UserError, match="segment index"):
        open_segments(dataset, 32)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("bad", [(-1, 5), (10**9, 5), (0, 0), (0, 10**9)])
def test_slices_outside_of_the_stream_are_found_when_read(dataset, bad):
    path = dataset.prefix.with_name(dataset.manifest.find_segments(32, "reference").file)
    array = np.load(path)
    array[3] = bad
    np.save(path, array)
    index = open_segments(dataset, 32)
    index(np.array([0, 1, 2]))
    with pytest.raises(UserError, match="segment 3 lies outside"):
        index(np.array([2, 3]))


def test_an_index_out_of_range_raises_index_error(dataset):
    index = open_segments(dataset, 32)
    for bad in (-1, len(index)):
        with pytest.raises(IndexError):
            index(np.array([0, bad]))


def test_policies_coexist(dataset):
    with pytest.raises(UserError, match=r"no packed segment index .* --lengths 32 --policy packed$"):
        open_segments(dataset, 32, "packed")
    entry = build_segments(dataset, 32, "packed")
    assert entry.file == "tiny.segments-32-packed.npy"
    assert entry.tokens == dataset.num_tokens
    assert len(open_segments(dataset, 32, "packed")) == entry.count == -(-dataset.num_tokens // 30)
    kept = [(entry.policy, entry.sequence_length) for entry in dataset.manifest.segments]
    assert kept == [("packed", 32), ("reference", 32), ("reference", 128)]


@pytest.mark.parametrize(
    ("length", "policy", "message"),
    [
        (7, "reference", "sequence length 7 is too short; use 8 to"),
        (2**31 + 1, "packed", "is too long"),
        (10**30, "reference", "is too long"),
        (32, "greedy", "unknown segment policy greedy; use one of: reference, packed"),
    ],
)
def test_invalid_segment_options_are_user_errors(dataset, length, policy, message):
    before = sorted(dataset.prefix.parent.iterdir())
    with pytest.raises(UserError, match=message):
        build_segments(dataset, length, policy)
    assert sorted(dataset.prefix.parent.iterdir()) == before


def test_the_longest_sequences_take_a_document_each(dataset):
    build_segments(dataset, 2**31)
    assert len(open_segments(dataset, 2**31)) == 40


@pytest.mark.parametrize("sentences", [[0, 2, 3], [2, 2, 2], [0, 2, 2]])
def test_the_reference_policy_needs_contiguous_sentences(tmp_path, sentences):
    (tmp_path / "d.bin").write_bytes(bytes(6))
    (tmp_path / "d.idx").write_bytes(foreign.index_bytes(1, [2, 2, 2], sentences, [0, 3]))
    with pytest.raises(UserError, match=r"d\.idx: the sentences are not contiguous"):
        build_segments(IndexedDataset(tmp_path / "d"), 32)
    assert build_segments(IndexedDataset(tmp_path / "d"), 32, "packed").tokens == 6


def test_progress_covers_the_whole_stream(dataset):
    passed = []
    for policy in ("reference", "packed"):
        build_segments(dataset, 64, policy, progress=passed.append)
        assert sum(passed) == dataset.num_tokens
        passed.clear()


def test_concurrent_builds_keep_all_segments(dataset):
    context = multiprocessing.get_context("fork")
    lengths = range(40, 48)
    started = context.Barrier(len(lengths))

    def add(length):
        started.wait()
        build_segments(dataset, length)

    processes = [context.Process(target=add, args=(length,)) for length in lengths]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [each.exitcode for each in processes] == [0] * len(lengths)
    assert [each.sequence_length for each in dataset.manifest.segments] == [32, *lengths, 128]


def test_a_file_system_without_locks_is_accepted(dataset, monkeypatch):
    def refuse(*arguments):
        raise OSError("no locks available")

    monkeypatch.setattr(manifest.fcntl, "flock", refuse)
    build_segments(dataset, 64)
    assert len(open_segments(dataset, 64)) > 0


def test_a_pickled_index_reopens_its_file(dataset):
    index = open_segments(dataset, 32)
    again = pickle.loads(pickle.dumps(index))
    assert np.array_equal(again(np.arange(5)), index(np.arange(5)))


def test_the_name_of_a_dataset_with_segments_is_utf_8(tmp_path):
    prefix = tmp_path / "d\udce9"
    foreign.write(prefix, [[1] * 10], [0, 1], 8)
    with pytest.raises(UserError, match=r"d\\xe9: the name is not valid UTF-8"):
        build_segments(IndexedDataset(prefix), 8)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".bin", ".idx"]
