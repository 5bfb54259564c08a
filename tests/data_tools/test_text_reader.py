"""Reading paragraphs of text files of every format, as a whole and in pieces."""

import gzip
import json
import lzma

import pyarrow
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools import text_reader
from data_tools.input_files import Skipped, file_pieces, find_input_files
from data_tools.input_formats import recognize
from data_tools.text_reader import END_OF_DOCUMENT, read_lines, read_paragraphs, read_piece
from elc_bert.utils.errors import UserError

TEXT = "One paragraph.\r\nAnother one, with caf\u00e9.  \n\n \n  A second document.\nIts end."
PARAGRAPHS = [
    ["One paragraph.", "Another one, with caf\u00e9."],
    ["A second document.", "Its end."],
]


def documents(path, piece_bytes=1 << 30, skipped=None, key="text"):
    """Read a file in pieces and return its documents, each a list of paragraphs."""
    found, current = [], []
    pieces = (
        piece
        for file in find_input_files([path], skipped=skipped).files
        for piece in file_pieces(file, piece_bytes, key, skipped)
    )
    for piece in pieces:
        for block in read_piece(piece, key, skipped):
            for paragraph in block.paragraphs:
                if paragraph != END_OF_DOCUMENT:
                    current.append(paragraph)
                elif current:
                    found.append(current)
                    current = []
    assert not current
    return found


def zstd(data: bytes) -> bytes:
    return pyarrow.compress(data, codec="zstd", asbytes=True)


COMPRESS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstd}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_plain_text_is_read_compressed_or_not(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(COMPRESS[suffix](TEXT.encode()))
    assert documents(path) == PARAGRAPHS
    # Concatenated compressed files are one file, as they are for gunzip.
    path.write_bytes(COMPRESS[suffix](TEXT.encode() + b"\n\n") + COMPRESS[suffix](TEXT.encode()))
    assert documents(path) == 2 * PARAGRAPHS
    assert next(line for line, _ in read_lines(recognize(path))) == "One paragraph."
    assert sum(size for _, size in read_lines(recognize(path))) == path.stat().st_size


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_record_of_json_lines_is_a_document(tmp_path, suffix):
    records = [{"text": "\n\n".join(each), "id": n} for n, each in enumerate(PARAGRAPHS)]
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix]("\n".join(map(json.dumps, records)).encode()))
    assert documents(path) == PARAGRAPHS


def test_a_row_of_parquet_is_a_document(tmp_path):
    path = tmp_path / "a.parquet"
    texts = ["\n".join(each) for each in PARAGRAPHS * 300]
    pq.write_table(pyarrow.table({"body": texts, "id": range(len(texts))}), path, row_group_size=70)
    assert documents(path, key="body") == PARAGRAPHS * 300
    pieces = file_pieces(recognize(path), 1000, "body")
    assert 1 < len(pieces) <= 9
    assert documents(path, piece_bytes=1000, key="body") == PARAGRAPHS * 300
    with pytest.raises(UserError, match=r"a\.parquet: .*'text'.* body, id"):
        documents(path)
    with pytest.raises(UserError, match="column 'id' holds int64"):
        documents(path, key="id")


@given(
    lines=st.lists(
        st.sampled_from(["", " ", "a", "Two words.", "\u6f22\u5b57 \u00e9", "x" * 40]), max_size=30
    ),
    end=st.sampled_from(["", "\n", "\r\n"]),
    piece_bytes=st.integers(1, 60),
)
def test_pieces_of_any_size_give_the_whole_text(tmp_path_factory, lines, end, piece_bytes):
    path = tmp_path_factory.mktemp("pieces") / "a.txt"
    path.write_bytes(("\n".join([*lines, "Not empty."]) + end).encode())
    assert documents(path, piece_bytes) == documents(path)
    sizes = [block.size for piece in file_pieces(recognize(path), piece_bytes) for block in read_piece(piece)]
    assert sum(sizes) == path.stat().st_size


@given(blocks=st.integers(1, 40))
def test_blocks_of_any_size_give_the_whole_text(tmp_path_factory, blocks):
    path = tmp_path_factory.mktemp("blocks") / "a.txt.gz"
    path.write_bytes(gzip.compress(TEXT.encode()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_reader, "BLOCK_BYTES", blocks)
        assert documents(path) == PARAGRAPHS


def test_a_byte_order_mark_is_ignored(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfText.\n")
    assert documents(path) == [["Text."]]


BAD = {
    "not UTF-8": ("a.txt", b"Good line.\nb\xffd\nMore.", r"a\.txt: not UTF-8 at byte 12"),
    "NUL byte": ("a.txt", b"Good line.\nb\0d\nMore.", r"a\.txt: NUL byte at byte 12"),
    "not JSON": (
        "a.jsonl",
        b'{"text": "Good line."}\n{"te\n{"text": "More."}',
        "record at byte 23 .*JSON",
    ),
    "no such key": (
        "a.jsonl",
        b'{"text": "Good line."}\n{"title": "T", "id": 1}\n{"text": "More."}',
        "record at byte 23 .*'text'.* title, id.*--json-key",
    ),
    "empty document": (
        "a.jsonl",
        b'{"text": "Good line."}\n{"text": " \\n"}\n{"text": "More."}',
        "record at byte 23 .*empty",
    ),
    "line too long": (
        "a.txt",
        b"Good line.\n" + b"x" * (text_reader.MAX_LINE_BYTES + 1) + b"\nMore.",
        r"a\.txt: .*byte 11 .*16 MiB",
    ),
}


@pytest.mark.parametrize("reason", BAD)
def test_unusable_input_is_an_error_or_is_skipped_and_counted(tmp_path, reason):
    name, content, message = BAD[reason]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{message}.*--on-error skip$"):
        documents(path)
    skipped = Skipped()
    paragraphs = [paragraph for document in documents(path, skipped=skipped) for paragraph in document]
    assert paragraphs == ["Good line.", "More."]
    assert skipped.counts == {reason: 1}
    assert f"1 x {reason} (first: {path}: " in skipped.lines()[0]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt.gz", gzip.compress(TEXT.encode())[:-9]),
        ("a.txt.gz", b"not compressed"),
        ("a.txt.xz", lzma.compress(TEXT.encode())[:-9]),
        ("a.jsonl.zst", zstd(TEXT.encode())[:-3]),
        ("a.parquet", b"PAR1 and then nothing that is right"),
    ],
    ids=[
        "gzip cut off",
        "not gzip",
        "xz cut off",
        "zstd cut off",
        "not parquet",
    ],  # the parameters would give unstable names, because gzip stores the time
)
def test_damaged_files_are_unreadable(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: cannot read: "):
        documents(path)
    skipped = Skipped()
    files = find_input_files([path], skipped=skipped).files
    assert list(read_paragraphs(files, skipped=skipped)) == []
    assert skipped.counts == {"unreadable file": 1}


@pytest.mark.parametrize("content", [b"", b"\n \n\t\n"])
def test_an_empty_file_is_named(tmp_path, content):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.txt: .*no text"):
        documents(path)
    skipped = Skipped()
    assert documents(path, skipped=skipped) == []
    assert skipped.counts == {"empty file": 1}


def test_a_lone_surrogate_is_not_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "\\ud800"}')
    with pytest.raises(UserError, match=r"a\.jsonl: .*surrogate at character 0"):
        documents(path)


LONG_TEXT = b"A line of text that is long enough to be read in several blocks.\n" * 40_000


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_nothing_of_a_file_is_read_that_is_damaged_beyond_its_beginning(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(COMPRESS[suffix](LONG_TEXT)[:-5])
    with pytest.raises(UserError, match=r"a\.txt\..*: cannot read: .*--on-error skip"):
        list(read_paragraphs(find_input_files([path]).files))
    skipped = Skipped()
    files = find_input_files([path], skipped=skipped).files
    assert skipped.counts == {}
    assert list(read_paragraphs(files, skipped=skipped)) == []
    assert skipped.counts == {"unreadable file": 1}


TEXTS = ["First text.", "Second text.", "First text."]


@pytest.mark.parametrize(
    "kind",
    [
        pyarrow.string(),
        pyarrow.large_string(),
        pyarrow.string_view(),
        pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
        pyarrow.dictionary(pyarrow.int8(), pyarrow.large_string()),
    ],
    ids=str,
)
def test_every_kind_of_string_column_is_text(tmp_path, kind):
    path = tmp_path / "a.parquet"
    column = pyarrow.array(TEXTS).cast(kind) if "dictionary" in str(kind) else pyarrow.array(TEXTS, kind)
    pq.write_table(pyarrow.table({"text": column}), path)
    assert documents(path) == [[text] for text in TEXTS]


def test_a_parquet_file_without_the_column_is_skipped(tmp_path):
    bad, good, numbers = tmp_path / "a.parquet", tmp_path / "b.parquet", tmp_path / "c.parquet"
    pq.write_table(pyarrow.table({"body": TEXTS}), bad)
    pq.write_table(pyarrow.table({"text": TEXTS}), good)
    pq.write_table(pyarrow.table({"text": [1, 2, 3]}), numbers)
    skipped = Skipped()
    files = find_input_files([tmp_path], skipped=skipped).files
    assert list(read_paragraphs(files, skipped=skipped)) == TEXTS
    assert skipped.counts == {"no such key": 2}
    with pytest.raises(UserError, match=r"a\.parquet: no column 'text'.* body; .*--on-error skip"):
        list(read_paragraphs(files))


def test_a_row_that_is_not_utf_8_is_skipped(tmp_path):
    path = tmp_path / "a.parquet"
    column = pyarrow.array([b"First text.", b"b\xffd", b"Last text."], pyarrow.binary())
    pq.write_table(pyarrow.table({"text": column.view(pyarrow.string())}), path)
    with pytest.raises(UserError, match=r"a\.parquet: row 1 is not UTF-8 at byte 1"):
        documents(path)
    skipped = Skipped()
    assert documents(path, skipped=skipped) == [["First text."], ["Last text."]]
    assert skipped.counts == {"not UTF-8": 1}


def test_the_progress_of_reading_adds_up_to_the_size_on_disk(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(LONG_TEXT))
    (tmp_path / "b.jsonl").write_text('{"text": "One."}\n{"text": "Two."}\n')
    # Row groups are larger in memory than on disk.
    table = pyarrow.table({"text": [f"{number} " * 1000 for number in range(1000)]})
    pq.write_table(table, tmp_path / "c.parquet", row_group_size=100)
    for file in find_input_files([tmp_path]).files:
        steps: list[int] = []
        list(read_paragraphs([file], progress=steps.append))
        assert min(steps) >= 0
        assert sum(steps) == file.size


@pytest.mark.parametrize(("words", "rows"), [(2, 256), (700_000, 2), (1_500_000, 1)])
def test_few_rows_of_long_texts_are_read_at_a_time(tmp_path, words, rows):
    """A row of many MiB must not bring 255 others into memory."""
    path = tmp_path / "a.parquet"
    count = 5 if rows < 256 else 600
    table = pyarrow.table({"text": ["a " * words] * count})
    pq.write_table(table, path, use_dictionary=False)
    (file,) = find_input_files([path]).files
    (piece,) = file_pieces(file, 1 << 40)
    ends = [block.paragraphs.count(END_OF_DOCUMENT) for block in read_piece(piece)][:-1]
    assert sum(ends) == count
    assert max(ends) == rows
