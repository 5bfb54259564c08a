"""Fuzz tests: reading a damaged dataset raises ``UserError`` or succeeds, and ``verify`` finds all damage."""

import os
import random
import resource
from collections import Counter

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.verify import verify
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.manifest import Manifest
from elc_bert.data.format.segments import build_segments, open_segments
from elc_bert.data.sampling.batches import MaskedBatches, Source
from elc_bert.data.sampling.masking import Masking
from elc_bert.utils.errors import UserError
from elc_bert.utils.files import sha256_of
from tests.data.format import foreign

VOCAB_SIZE = 300
SEGMENTS = [(16, "reference"), (40, "reference"), (16, "packed")]
EXTREMES = [
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 2,
    2**64 - 1,
]


@pytest.fixture(scope="module", params=[8, 4], ids=["uint16", "int32"])
def prefix(request, tmp_path_factory):
    draw = random.Random(1)
    prefix = tmp_path_factory.mktemp("damage") / "d"
    sentences = [draw.choices(range(5, VOCAB_SIZE), k=draw.randint(1, 25)) for _ in range(60)]
    documents = sorted([0, *draw.sample(range(1, 60), 7), 60])
    foreign.write(prefix, sentences, documents, request.param)
    dataset = IndexedDataset(prefix)
    described = {
        "words": 300,
        "vocab_size": VOCAB_SIZE,
        "bin_sha256": sha256_of(prefix.with_suffix(".bin")),
        "idx_sha256": sha256_of(prefix.with_suffix(".idx")),
        "versions": {"elc-bert": "1"},
    }
    dataset.manifest.model_copy(update=described).save(prefix)
    for length, policy in SEGMENTS:
        build_segments(dataset, length, policy)
    assert verify(prefix).problems == []
    return prefix


@pytest.fixture
def memory_limit():
    """Limit the memory, so that a reader that allocates by a damaged size fails."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 2**29, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def damaged(draw: random.Random, data: bytes, others: list[bytes]) -> bytes | None:
    """Return the damaged content of a file; None if the file is deleted."""
    new = bytearray(data)
    # Headers and first entries are small, but damage there matters most.
    place = draw.randrange(min(len(data), draw.choice([40, 200, len(data)])))
    size = draw.choice([1, 2, 4, 8, 12, 64, 512])
    match draw.choice(
        ["bit", "bit", "extreme", "extreme", "cut", "grow", "zero", "swap", "gone", "copy", "other"]
    ):
        case "bit":
            for _ in range(draw.choice([1, 1, 3])):
                new[place] ^= 1 << draw.randrange(8)
                place = draw.randrange(len(data))
        case "extreme":
            width = draw.choice([1, 2, 4, 8])
            value = draw.choice(EXTREMES) % 256**width
            new[place : place + width] = value.to_bytes(width, "little")
            if draw.random() < 0.7:  # otherwise the file may get longer
                del new[len(data) :]
        case "cut":
            del new[draw.choice([place, len(data) - min(size, len(data))]) :]
        case "grow":
            new += draw.choice([bytes(size), draw.randbytes(size), data[:size], data])
        case "zero":
            new[place : place + size] = bytes(len(new[place : place + size]))
        case "swap":
            other = draw.randrange(len(data))
            size = min(size, len(data) - max(place, other))
            one, two = data[place : place + size], data[other : other + size]
            new[place : place + size], new[other : other + size] = two, one
        case "gone":
            return None
        case "copy":
            new[place:place] = data[place : place + size]
        case "other":
            new = bytearray(draw.choice([*others, b"", draw.randbytes(size)]))
    return bytes(new)


def replace_file(path, content: bytes | None) -> None:
    """Replace a file, so that existing memory maps of the old one stay valid."""
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)


def read_everything(prefix) -> list[list]:
    """Read all samples of a dataset as training does, and all sentences and documents."""
    dataset = IndexedDataset(prefix)
    read = []
    for length, policy in SEGMENTS:
        segments = open_segments(dataset, length, policy)
        batches = MaskedBatches([Source(dataset, segments, 1)], length, VOCAB_SIZE, Masking())
        samples = np.arange(len(segments))
        batch = batches(samples * 0, samples * 0, samples)
        assert 0 <= batch.tokens.min() <= batch.tokens.max() < VOCAB_SIZE
        read.append([batch.input_ids.tolist(), batch.tokens.tolist()])
    offsets, lengths = dataset.spans(0, len(dataset.lengths))
    bounds = dataset.documents_between(0, len(dataset.documents) - 1)
    for offset, length in zip(offsets.tolist(), lengths.tolist(), strict=True):
        assert 0 <= offset <= offset + length <= dataset.num_tokens
        assert len(dataset.tokens[offset : offset + length]) == length
    assert bounds[0] == 0
    assert bounds[-1] == len(dataset.lengths)
    return [*read, offsets.tolist(), lengths.tolist(), bounds.tolist()]


def error_of(read) -> str | None:
    """Return the message of a ``UserError``, or None without one; any other exception is a bug."""
    try:
        read()
    except UserError as error:
        return str(error)
    return None


@pytest.mark.timeout(300)
def test_all_damage_is_detected_and_harmless(prefix, memory_limit):
    draw = random.Random(7)
    whole = read_everything(prefix)
    files = {path: path.read_bytes() for path in sorted(prefix.parent.iterdir())}
    # There are three segment indexes, so the other files are drawn more often to balance the kinds.
    paths = [*files, *(prefix.with_suffix(suffix) for suffix in (".idx", ".idx", ".bin", ".json"))]
    outcomes = Counter()
    for case in range(1000):
        path = draw.choice(paths)
        content = damaged(draw, files[path], [*files.values()])
        replace_file(path, content)
        read = []
        error = error_of(lambda read=read: read.extend(read_everything(prefix)))
        if error is not None:
            assert error.startswith(os.fspath(prefix)), error
            assert "\n" not in error
        # A flipped bit of a token, for example, changes what is read; `verify` must find it.
        problems = verify(prefix).problems
        assert bool(problems) == (content != files[path]), f"case {case}: {path.name} is {content!r}"
        assert not any("\n" in problem for problem in problems)
        outcomes[path.suffix, "error" if error else "same" if read == whole else "other"] += 1
        replace_file(path, files[path])
    assert read_everything(prefix) == whole
    for suffix in (".bin", ".idx", ".json", ".npy"):
        assert outcomes[suffix, "error"] > outcomes[suffix, "same"] + outcomes[suffix, "other"]
    assert outcomes[".json", "other"] == 0


HEADERS = st.builds(
    lambda magic, version, code, n, d: (
        magic
        + version.to_bytes(8, "little")
        + bytes([code])
        + n.to_bytes(8, "little")
        + d.to_bytes(8, "little")
    ),
    magic=st.just(b"MMIDIDX\0\0"),
    version=st.just(1),
    code=st.integers(0, 9),
    n=st.integers(0, 3) | st.integers(0, 2**64 - 1) | st.sampled_from(EXTREMES),
    d=st.integers(0, 3) | st.integers(0, 2**64 - 1) | st.sampled_from(EXTREMES),
)


@given(index=st.binary(max_size=200) | st.builds(bytes.__add__, HEADERS, st.binary(max_size=60)))
def test_random_bytes_as_index_only_raise_user_errors(tmp_path_factory, index):
    prefix = tmp_path_factory.mktemp("d") / "d"
    prefix.with_suffix(".bin").write_bytes(bytes(40))
    prefix.with_suffix(".idx").write_bytes(index)

    def read():
        dataset = IndexedDataset(prefix)
        dataset.spans(0, len(dataset.lengths))
        dataset.documents_between(0, len(dataset.documents) - 1)
        build_segments(dataset, 16)

    assert "\n" not in (error_of(read) or "")


@given(content=st.binary(max_size=200))
def test_random_bytes_as_any_other_file_only_raise_user_errors(tmp_path_factory, content):
    prefix = tmp_path_factory.mktemp("d") / "d"
    foreign.write(prefix, [[1, 2, 3]], [0, 1], code=8)
    dataset = IndexedDataset(prefix)
    build_segments(dataset, 16)
    for path in (prefix.with_suffix(".segments-16.npy"), Manifest.path(prefix)):
        path.write_bytes(content)
        with pytest.raises(UserError):
            open_segments(dataset, 16)
    assert verify(prefix).problems
