"""Frames of compressed files."""

import pyarrow
import pytest

from data_tools.input_formats import TEXT, open_content, recognize

FRAME = pyarrow.compress(b"Text.\n", codec="zstd", asbytes=True)


@pytest.mark.parametrize("number", [0x50, 0x57, 0x5F])
def test_a_file_may_begin_with_a_frame_to_be_skipped(tmp_path, number):
    """``pzstd`` writes such frames; there are 16 numbers for them."""
    path = tmp_path / "part-0"
    path.write_bytes(bytes([number]) + b"\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"\x06\0\0\0" + FRAME)
    found = recognize(path)
    assert (found.kind, found.compression, found.description) == (TEXT, ".zst", "plain text, zst")
    with open_content(path, ".zst") as (content, _):
        assert content.read() == b"Text.\n"


@pytest.mark.parametrize("number", [0x4F, 0x60])
def test_other_numbers_begin_no_frame(tmp_path, number):
    path = tmp_path / "part-0"
    path.write_bytes(bytes([number]) + b"\x2a\x4d\x18 text\n")
    assert recognize(path).compression == ""
