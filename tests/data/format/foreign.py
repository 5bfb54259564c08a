"""Independent writer and reader of ``.bin`` and ``.idx``, written from ``docs/data-format.md`` alone.

Nothing is imported from the package, so that agreement between the two confirms the format.
"""

import struct
from array import array
from itertools import accumulate, pairwise
from pathlib import Path

ARRAY_CODES = {1: "B", 2: "b", 3: "h", 4: "i", 5: "q", 8: "H"}


def write(prefix: Path, sequences: list[list[int]], documents: list[int], code: int) -> None:
    """Write contiguous sequences; ``documents`` is the document index as stored in the file."""
    tokens = array(ARRAY_CODES[code], [token for sequence in sequences for token in sequence])
    lengths = [len(sequence) for sequence in sequences]
    pointers = [tokens.itemsize * place for place in accumulate(lengths, initial=0)][:-1]
    Path(f"{prefix}.bin").write_bytes(tokens.tobytes())
    Path(f"{prefix}.idx").write_bytes(index_bytes(code, lengths, pointers, documents))


def index_bytes(code: int, lengths: list[int], pointers: list[int], documents: list[int]) -> bytes:
    """Return the content of ``.idx``."""
    return b"".join(
        [
            bytes.fromhex("4D4D49444944580000"),
            struct.pack("<QB", 1, code),
            struct.pack("<QQ", len(lengths), len(documents)),
            struct.pack(f"<{len(lengths)}i", *lengths),
            struct.pack(f"<{len(pointers)}q", *pointers),
            struct.pack(f"<{len(documents)}q", *documents),
        ]
    )


def read(prefix: Path) -> list[list[list[int]]]:
    """Read documents, as lists of sequences of token ids."""
    index, stream = Path(f"{prefix}.idx").read_bytes(), Path(f"{prefix}.bin").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    version, code, n, d = struct.unpack_from("<QBQQ", index, 9)
    assert (version, len(index)) == (1, 34 + 12 * n + 8 * d)
    lengths = struct.unpack_from(f"<{n}i", index, 34)
    pointers = struct.unpack_from(f"<{n}q", index, 34 + 4 * n)
    documents = struct.unpack_from(f"<{d}q", index, 34 + 12 * n)
    size = array(ARRAY_CODES[code]).itemsize
    sequences = [
        array(ARRAY_CODES[code], stream[pointer : pointer + size * length]).tolist()
        for pointer, length in zip(pointers, lengths, strict=True)
    ]
    return [sequences[a:b] for a, b in pairwise(documents)]


def read_segments(path: Path) -> list[tuple[int, int]]:
    """Read the offsets and lengths of a segment index."""
    data = path.read_bytes()
    assert data[:8] == bytes.fromhex("934E554D50590100")
    (size,) = struct.unpack_from("<H", data, 8)
    header = eval(data[10 : 10 + size])
    assert header["descr"] == [("offset", "<i8"), ("length", "<i4")]
    assert header["fortran_order"] is False
    records = list(struct.iter_unpack("<qi", data[10 + size :]))
    assert (len(records),) == header["shape"]
    return records
