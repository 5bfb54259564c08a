"""The command ``merge``, which concatenates the documents of several datasets."""

import random
import re
from itertools import accumulate, pairwise
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools import dataset_output, dataset_stream
from data_tools.__main__ import main
from data_tools.build import build_dataset
from data_tools.dataset_output import work_folder
from data_tools.merge import merge_datasets
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.manifest import Manifest
from elc_bert.data.format.segments import build_segments
from elc_bert.data.format.writer import IndexedDatasetWriter
from elc_bert.utils.errors import UserError
from tests.data.format import foreign
from tests.data_tools.running import assert_fails, run

SENTENCE = st.lists(st.integers(0, 100), max_size=6)
DOCUMENTS = st.lists(st.lists(SENTENCE, min_size=1, max_size=4), min_size=1, max_size=5)
DOCUMENTS_WITH_TOKENS = DOCUMENTS.filter(lambda documents: any(any(document) for document in documents))
DATASETS = st.lists(DOCUMENTS_WITH_TOKENS, min_size=1, max_size=4)
CODES = st.sampled_from(list(foreign.ARRAY_CODES))


def write(prefix: Path, documents: list[list[list[int]]], code: int = 8) -> Path:
    """Write a dataset without a manifest."""
    sentences = [sentence for document in documents for sentence in document]
    foreign.write(prefix, sentences, list(accumulate(map(len, documents), initial=0)), code)
    return prefix


def describe(prefix: Path, **fields) -> Path:
    """Give a dataset a manifest."""
    dataset = IndexedDataset(prefix)
    Manifest(
        sequences=len(dataset.lengths),
        documents=len(dataset.documents) - 1,
        tokens=dataset.num_tokens,
        **fields,
    ).save(prefix)
    return prefix


def file_contents(prefix: Path) -> dict[str, bytes]:
    """Return the contents of all file_contents of a dataset, by suffix."""
    found = prefix.parent.glob(f"{prefix.name}.*")
    return {path.name.removeprefix(prefix.name): path.read_bytes() for path in found}


@settings(max_examples=25, deadline=None)
@given(datasets=DATASETS, codes=st.lists(CODES, min_size=4, max_size=4), at_once=st.integers(1, 9))
def test_the_result_is_the_concatenation_of_the_inputs(tmp_path_factory, datasets, codes, at_once):
    folder = tmp_path_factory.mktemp("merge")
    inputs = [
        write(folder / str(number), documents, code)
        for number, (documents, code) in enumerate(zip(datasets, codes, strict=False))
    ]
    # Small batches end anywhere in a document, as they do in a dataset of billions of tokens.
    with mock.patch.multiple(dataset_stream, SENTENCES_AT_ONCE=at_once, TOKENS_AT_ONCE=2 * at_once):
        merge_datasets(inputs, folder / "merged")
    documents = [document for each in datasets for document in each]
    assert foreign.read(folder / "merged") == documents
    # The file_contents are those of a writer that gets all documents. int32 is used only if an input has it.
    dtype = "<i4" if {4} & set(codes[: len(datasets)]) else "<u2"
    with IndexedDatasetWriter(folder / "whole", dtype) as writer:
        for document in documents:
            writer.add_document(document)
    merged = file_contents(folder / "merged")
    del merged[".json"]
    assert merged == file_contents(folder / "whole")


@settings(max_examples=10, deadline=None)
@given(a=DOCUMENTS_WITH_TOKENS, b=DOCUMENTS_WITH_TOKENS, c=DOCUMENTS_WITH_TOKENS)
def test_merging_is_associative(tmp_path_factory, a, b, c):
    folder = tmp_path_factory.mktemp("merge")
    for name, documents in (("a", a), ("b", b), ("c", c)):
        write(folder / name, documents)
        describe(folder / name, words=len(name), skipped={"not UTF-8": 2})
        for policy in ("reference", "packed"):
            build_segments(IndexedDataset(folder / name), 8, policy)
    merge_datasets([folder / "a", folder / "b"], folder / "ab")
    for name, inputs in (("(ab)c", ["ab", "c"]), ("abc", ["a", "b", "c"])):
        (folder / name).mkdir()
        merge_datasets([folder / each for each in inputs], folder / name / "merged")
    at_once = file_contents(folder / "abc/merged")
    assert at_once == file_contents(folder / "(ab)c/merged")
    assert {".segments-8.npy", ".bin", ".idx", ".json"} < set(at_once)


def test_merging_parts_equals_building_the_whole(tiny_text, tiny_tokenizer, tmp_path):
    documents = tiny_text.read_text(encoding="utf-8").split("\n\n")
    texts = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for text, part in zip(texts, (documents[:15], documents[15:]), strict=True):
        text.write_text("\n\n".join(part), encoding="utf-8")
        build_dataset([text], tiny_tokenizer, text.with_suffix(""), lengths=[32, 128], workers=1)
    build_dataset(texts, tiny_tokenizer, tmp_path / "whole/d", lengths=[32, 128], workers=1)
    merge_datasets([tmp_path / "a", tmp_path / "b"], tmp_path / "merged/d")
    # This includes the manifests: words, inputs, versions, checksums, segments.
    assert file_contents(tmp_path / "merged/d") == file_contents(tmp_path / "whole/d")


def test_sentences_may_be_stored_in_any_order(tmp_path):
    """Other programs may write ``.bin`` with gaps, in reverse order, or with overlapping sentences."""
    np.arange(100, dtype="<u2").tofile(tmp_path / "d.bin")
    slices = [(90, 5), (10, 3), (13, 2), (15, 0), (12, 4), (0, 1), (10, 3)]
    lengths, pointers = [length for _, length in slices], [2 * offset for offset, _ in slices]
    (tmp_path / "d.idx").write_bytes(foreign.index_bytes(8, lengths, pointers, [0, 2, 2, 7]))
    merge_datasets([tmp_path / "d"], tmp_path / "merged")
    sentences = [list(range(offset, offset + length)) for offset, length in slices]
    assert foreign.read(tmp_path / "merged") == [sentences[:2], sentences[2:]]
    assert IndexedDataset(tmp_path / "merged").num_tokens == sum(lengths)


def test_positions_beyond_32_bits(tmp_path):
    """4.3 GB of tokens that take no space: 256 sentences share a run of zeros, which are stored as holes."""
    small = write(tmp_path / "small", [[[1, 2], [3]], [[4]]])
    long = 1 << 23
    np.zeros(long, dtype="<u2").tofile(tmp_path / "large.bin")
    (tmp_path / "large.idx").write_bytes(foreign.index_bytes(8, [long] * 256, [0] * 256, [0, 100, 256]))
    checksums = mock.Mock(
        **{"return_value.hexdigest.return_value": "0" * 64}
    )  # hashing would take most of the time
    with mock.patch("elc_bert.data.format.writer.hashlib.sha256", checksums):
        merge_datasets([small, tmp_path / "large", small], tmp_path / "merged")
    merged = IndexedDataset(tmp_path / "merged")
    offsets, lengths = merged.spans(0, len(merged.lengths))
    assert lengths.tolist() == [2, 1, 1, *[long] * 256, 2, 1, 1]
    assert offsets[-4:].tolist() == [255 * long + 4, 2**31 + 4, 2**31 + 6, 2**31 + 7]
    assert merged.pointers[-1] == 2**32 + 14
    assert merged.tokens[:5].tolist() == [1, 2, 3, 4, 0]
    assert merged.tokens[-5:].tolist() == [0, 1, 2, 3, 4]
    assert merged.documents.tolist() == [0, 2, 3, 103, 259, 261, 262]
    assert (tmp_path / "merged.bin").stat().st_blocks * 512 < 2**20


def test_the_result_has_the_narrowest_dtype_that_holds_all_ids(tmp_path):
    def merged_dtype(*inputs):
        merge_datasets(inputs, tmp_path / "merged", overwrite=True)
        return IndexedDataset(tmp_path / "merged").tokens.dtype.name

    small = write(tmp_path / "small", [[[1, 65535]]], code=5)
    large = write(tmp_path / "large", [[[1, 65536]]], code=5)
    huge = write(tmp_path / "huge", [[[1, 2**31]]], code=5)
    assert merged_dtype(small) == "uint16"
    assert merged_dtype(small, large) == "int32"
    assert merged_dtype(small, large, huge) == "int64"
    assert merged_dtype(describe(write(tmp_path / "known", [[[1]]], code=4), vocab_size=6144)) == "uint16"


def test_the_default_segment_indexes_are_those_that_all_inputs_have(tmp_path):
    draw = random.Random(0)
    inputs = tmp_path / "a", tmp_path / "b"
    for prefix, length in zip(inputs, (16, 64), strict=True):
        write(prefix, [[draw.choices(range(9), k=20) for _ in range(20)] for _ in range(5)])
        build_segments(IndexedDataset(prefix), length)
        build_segments(IndexedDataset(prefix), 32, "packed")

    def segments(**options):
        manifest = merge_datasets(inputs, tmp_path / "ab", overwrite=True, **options)
        return [(each.sequence_length, each.policy) for each in manifest.segments]

    assert segments() == [(32, "packed")]
    assert segments(lengths=[16, 128]) == [(16, "reference"), (128, "reference")]


def test_merge_writes_one_dataset_and_refuses_inputs_that_do_not_match(capsys, tmp_path):
    a, b, other = (write(tmp_path / name, [[[1, 2], [3]], [[4]]]) for name in ("a", "b", "other"))
    describe(a, words=3, vocab_size=512, tokenizer_sha256="a" * 64)
    describe(b, words=2, vocab_size=512, tokenizer_sha256="a" * 64)
    describe(other, vocab_size=512, tokenizer_sha256="b" * 64)
    done = run("merge", "--input", a, b, "--output", tmp_path / "new/ab", "--lengths", 8)
    assert done.returncode == 0, done.stderr
    assert re.search(r"documents +4\n", done.stdout)
    assert re.search(r"segments of 8 +4\n", done.stdout)
    manifest = IndexedDataset(tmp_path / "new/ab").manifest
    assert (manifest.words, manifest.vocab_size, manifest.tokenizer_sha256) == (5, 512, "a" * 64)
    kept = file_contents(tmp_path / "new/ab")

    output = "--output", tmp_path / "new/ab"
    assert_fails(capsys, ("merge", "--input", a, b, *output), f"{tmp_path / 'new/ab'}.bin: ", "--overwrite")
    assert_fails(
        capsys,
        ("merge", "--input", a, other, *output, "--overwrite"),
        f"{other}: ",
        f"another tokenizer than {a}",
    )
    assert_fails(capsys, ("merge", "--input", a, tmp_path / "none", *output), "none.idx: ")
    assert_fails(capsys, ("merge", "--input", a, b, "--output", tmp_path / "new/../a"), f"the input {a}")
    assert_fails(capsys, ("merge", "--input", a, b, *output, "--lengths", 2), "length 2")
    for suffix in (".bin", ".idx"):
        (tmp_path / f"link{suffix}").symlink_to(f"a{suffix}")
    for again in (a, tmp_path / "new/../a", tmp_path / "link"):
        message = f"{again}: the same dataset as {a}"
        assert_fails(capsys, ("merge", "--input", a, b, again, *output, "--overwrite"), message)
    assert file_contents(tmp_path / "new/ab") == kept

    Manifest.path(b).unlink()
    assert main(["merge", "--input", str(a), str(b), *map(str, output), "--overwrite"]) == 0
    assert "the tokenizer is unknown" in capsys.readouterr().out
    manifest = IndexedDataset(tmp_path / "new/ab").manifest
    assert (manifest.words, manifest.vocab_size, manifest.tokenizer_sha256) == (None, None, None)
    assert [path.name for path in (tmp_path / "new").iterdir() if path.name.startswith(".")] == []


def test_copies_of_one_tokenizer_are_the_same_tokenizer(tmp_path):
    prefixes = [write(tmp_path / name, [[[1, 2], [3]]]) for name in "abcd"]
    old, one, copy, other = prefixes
    describe(old, tokenizer_sha256="a" * 64)
    describe(one, tokenizer_sha256="a" * 64, tokenizer_fingerprint="1" * 64)
    describe(copy, tokenizer_sha256="b" * 64, tokenizer_fingerprint="1" * 64)
    describe(other, tokenizer_sha256="c" * 64, tokenizer_fingerprint="2" * 64)

    def merged(*inputs) -> tuple[str | None, str | None]:
        manifest = merge_datasets(inputs, tmp_path / "merged", overwrite=True)
        return manifest.tokenizer_sha256, manifest.tokenizer_fingerprint

    assert merged(one, copy) == ("a" * 64, "1" * 64)
    assert merged(copy, old, one) == ("b" * 64, "1" * 64)
    assert merged(old, one) == ("a" * 64, "1" * 64)
    assert merged(old, old) == ("a" * 64, None)
    for inputs in ([one, other], [old, other], [old, copy], [one, copy, other]):
        with pytest.raises(UserError, match=f"^{inputs[-1]}: built with another tokenizer than {inputs[0]}"):
            merged(*inputs)


@pytest.mark.parametrize(
    ("lengths", "documents", "message"),
    [
        ([2, 2, 2], [0, 3, 1, 3], "document 2 .*sentence 1"),
        ([2, 2, 2], [0, 2**40, 1, 3], r"bad\.idx: document"),
        ([2, -2, 2], [0, 1, 2, 3], "sentence 1"),
        ([2, 200, 2], [0, 1, 2, 3], "sentence 1"),
    ],
)
@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_a_damaged_input_is_an_error_and_leaves_nothing(tmp_path, lengths, documents, message, at_once):
    good = write(tmp_path / "good", [[[1, 2]]])
    np.arange(6, dtype="<u2").tofile(tmp_path / "bad.bin")
    (tmp_path / "bad.idx").write_bytes(foreign.index_bytes(8, lengths, [0, 4, 8], documents))
    with (
        mock.patch.object(dataset_stream, "SENTENCES_AT_ONCE", at_once),
        pytest.raises(UserError, match=message),
    ):
        merge_datasets([good, tmp_path / "bad"], tmp_path / "out/merged")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_failure_at_the_end_leaves_nothing(tmp_path):
    good = write(tmp_path / "good", [[[1, 2]]])
    with (
        mock.patch.object(dataset_output, "build_segments", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        merge_datasets([good], tmp_path / "out/merged", lengths=[8])
    assert list((tmp_path / "out").iterdir()) == []


def test_files_of_a_killed_process_are_not_reused(tmp_path):
    good = write(tmp_path / "good", [[[1, 2]]])
    work_folder(tmp_path / "merged").mkdir()
    (work_folder(tmp_path / "merged") / "merged.segments-64.npy").touch()
    merge_datasets([good], tmp_path / "merged")
    assert set(file_contents(tmp_path / "merged")) == {".bin", ".idx", ".json"}


def test_documents_of_different_inputs_are_not_joined(tmp_path):
    """No segment holds tokens of both the last document of one input and the first document of the next."""
    write(tmp_path / "a", [[[1, 1], [1, 1]]])
    write(tmp_path / "b", [[[2, 2], [2, 2]]])
    merge_datasets([tmp_path / "a", tmp_path / "b"], tmp_path / "ab", lengths=[16])
    tokens = IndexedDataset(tmp_path / "ab").tokens
    segments = foreign.read_segments(tmp_path / "ab.segments-16.npy")
    assert [set(tokens[offset : offset + length].tolist()) for offset, length in segments] == [{1}, {2}]
    assert [b - a for a, b in pairwise(IndexedDataset(tmp_path / "ab").documents.tolist())] == [2, 2]
