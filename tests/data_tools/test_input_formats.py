"""Formats of input files, recognized by content."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile

import pyarrow
import pyarrow.parquet as pq
import pytest

from data_tools.input_formats import JSON_LINES, PARQUET, TEXT, UnsupportedFormatError, recognize
from elc_bert.utils.errors import UserError

RECORDS = b'{"text": "One."}\n{"text": "Two."}\n'


def parquet(path) -> None:
    pq.write_table(pyarrow.table({"text": ["One."]}), path)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.txt", b"Text.\n", TEXT),
        ("a", b"Text.\n", TEXT),
        ("a.txt", b"", TEXT),
        ("a.train", b"[[A link]] and text.\n", TEXT),
        ("a.txt", b"[laughs] {sic}\n", TEXT),
        ("a.txt", b"{curly} text\n", TEXT),
        ("a.txt", b"Text.\r\nMore.\r\n", TEXT),
        ("a.txt", b"Text.\r", TEXT),
        ("a.txt", b"He wrote <html> in the text.\n", TEXT),
        ("a.jsonl", RECORDS, JSON_LINES),
        ("a.JSONL", RECORDS, JSON_LINES),
        ("a.ndjson", b"not JSON\n", JSON_LINES),
        ("a.json", RECORDS, JSON_LINES),
        ("a.json", RECORDS.rstrip(), JSON_LINES),
        ("a.json", b"\xef\xbb\xbf\n  " + RECORDS, JSON_LINES),
        ("part-0", RECORDS, JSON_LINES),
        ("a.txt", RECORDS, JSON_LINES),
        ("a.json", json.dumps({"text": "x" * 200_000}).encode() + b"\n" + RECORDS, JSON_LINES),
    ],
)
@pytest.mark.parametrize("compression", ["", ".gz", ".xz", ".zst"])
def test_text_and_json_lines_are_recognized_compressed_or_not(tmp_path, name, content, kind, compression):
    compress = {
        "": bytes,
        ".gz": gzip.compress,
        ".xz": lzma.compress,
        ".zst": lambda data: pyarrow.compress(data, codec="zstd", asbytes=True),
    }[compression]
    for suffix in {"", compression, compression.upper()}:  # the name need not show the compression
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(compress(content))
        found = recognize(path)
        assert (found.kind, found.compression) == (kind, compression)
        assert found.size == path.stat().st_size


def test_parquet_is_recognized_under_any_name(tmp_path):
    parquet(tmp_path / "part-0")
    assert recognize(tmp_path / "part-0").kind == PARQUET
    (tmp_path / "a.parquet").write_text("Text.")
    with pytest.raises(UserError, match=r"a\.parquet: cannot read: not a Parquet file"):
        recognize(tmp_path / "a.parquet")


def archive(kind: str) -> bytes:
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as each:
            each.writestr("a.txt", "Text.")
    else:
        with tarfile.open(fileobj=file, mode="w") as each:
            info = tarfile.TarInfo("a.txt")
            info.size = 5
            each.addfile(info, io.BytesIO(b"Text."))
    return file.getvalue()


UNSUPPORTED = {
    "table.csv": (b"id,text\n1,Text\n", r"a table \(\.csv\).*--format text"),
    "table.TSV": (b"id\ttext\n", r"a table \(\.tsv\)"),
    "table.csv.gz": (gzip.compress(b"id,text\n"), r"a table \(\.csv\)"),
    "array.json": (b'[{"text": "One."}, {"text": "Two."}]', "JSON, but not one record per line.*jq"),
    "array.txt": (b'[\n  {"text": "One."}\n]', "JSON, but not one record per line"),
    "document.json": (b'{\n  "text": "One."\n}\n', "JSON, but not one record per line"),
    "document.txt": (b'{\n  "text": "One."\n}\n', "JSON, but not one record per line"),
    "prose.json": (b"Text.\n", "not JSON lines in spite of its name"),
    "page.html": (b"<!DOCTYPE html>\n<html></html>", "HTML or XML.*--format text"),
    "page.txt": (b"\n<HTML>", "HTML or XML"),
    "dump.xml": (b'<?xml version="1.0"?>', "HTML or XML"),
    "mac.txt": (b"One.\rTwo.\r", "its lines end in CR"),
    "a.txt.bz2": (bz2.compress(b"Text."), "a bzip2 file"),
    "a.zip": (archive("zip"), "a ZIP archive"),
    "a.tar.gz": (gzip.compress(archive("tar")), "a tar archive"),
    "a.pdf": (b"%PDF-1.7\n", "a PDF file"),
    "a.rtf": (b"{\\rtf1 Text.}", "an RTF file"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_other_formats_are_refused(tmp_path, name):
    content, message = UNSUPPORTED[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UnsupportedFormatError, match=f"{name}: {message}") as caught:
        recognize(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["table.csv", "array.json", "page.html", "document.txt", "mac.txt"])
def test_any_text_is_read_as_it_is_if_the_user_says_so(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(UNSUPPORTED[name][0])
    assert recognize(path, "text").kind == TEXT
    assert recognize(path, "jsonl").kind == JSON_LINES


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst", ".GZ"])
def test_a_compressed_name_needs_compressed_content(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"
    path.write_text("Text.")
    with pytest.raises(UserError, match=rf"a\.txt.*: cannot read: not a \{suffix.lower()} file"):
        recognize(path)
