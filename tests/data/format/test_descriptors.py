"""More datasets than a process may open files, in child processes with a limit that is really low."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from elc_bert.data.format.descriptors import DESCRIPTORS, DescriptorCache
from elc_bert.data.format.indexed import IndexedDataset, with_suffix
from elc_bert.data.format.mapped_file import MappedFile
from elc_bert.data.format.segments import build_segments
from elc_bert.data.format.writer import IndexedDatasetWriter
from elc_bert.utils.errors import UserError
from tests.data_tools.running import ENVIRONMENT, run

COUNT = 1000
LIMIT = 96


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Folder of 1,000 datasets of 30 tokens; every token of dataset i is 6 + i % 500."""
    folder = tmp_path_factory.mktemp("many")
    with IndexedDatasetWriter(folder / "d", np.dtype("<u2")) as writer:
        writer.add_document([[6] * 30])
    build_segments(IndexedDataset(folder / "d"), 32)
    parts = {suffix: with_suffix(folder / "d", suffix).read_bytes() for suffix in (".idx", ".json")}
    segments = (folder / "d.segments-32.npy").read_bytes()
    for number in range(COUNT):
        prefix = folder / f"d{number:03}"
        with_suffix(prefix, ".bin").write_bytes(np.full(30, 6 + number % 500, "<u2").tobytes())
        with_suffix(prefix, ".idx").write_bytes(parts[".idx"])
        name = f"{prefix.name}.segments".encode()
        with_suffix(prefix, ".json").write_bytes(parts[".json"].replace(b"d.segments", name))
        with_suffix(prefix, ".segments-32.npy").write_bytes(segments)
    return folder


def low_limit() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT))


def run_script(script: str, *arguments, before=low_limit) -> str:
    """Run a Python script in a process of its own and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=120, preexec_fn=before,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


BLEND = """
import os, pickle, sys
from pathlib import Path
import numpy as np
from elc_bert.data.sampling.blend import Portion
from elc_bert.data.sampling.masking import Masking
from elc_bert.data.sampling.stream import SampleStream
folder, count, limit = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
portions = [Portion(folder / f"d{i:03}") for i in range(count)]
stream = SampleStream(portions, 32, 1, 0, Masking(short_p=0.0), 512, "reference")
positions = np.arange(2 * count)
which, _ = stream.blend(positions)
assert sorted(which.tolist()) == sorted(2 * list(range(count)))
assert (stream(positions).tokens[:, 1:31] == 6 + which[:, None] % 500).all()
child = os.fork()  # as the workers of a DataLoader
if child == 0:
    os._exit(0 if (stream(positions).tokens[:, 1:31] == 6 + which[:, None] % 500).all() else 1)
assert os.waitpid(child, 0)[1] == 0
assert len(os.listdir("/proc/self/fd")) < limit / 2
print("read", len(positions))
"""


def test_a_blend_of_a_thousand_datasets_needs_few_descriptors(folder):
    assert run_script(BLEND, folder, COUNT, LIMIT) == f"read {2 * COUNT}\n"


def test_a_thousand_datasets_are_merged_and_verified_with_few_descriptors(folder, tmp_path):
    prefixes = [folder / f"d{number:03}" for number in range(COUNT)]
    done = run("merge", "--input", *prefixes, "--output", tmp_path / "m", before=low_limit)
    assert done.returncode == 0, done.stderr
    merged = IndexedDataset(tmp_path / "m")
    assert merged.num_documents == COUNT
    assert merged.tokens.reshape(COUNT, 30)[:, 0].tolist() == [6 + number % 500 for number in range(COUNT)]
    assert run("verify", tmp_path / "m", before=low_limit).returncode == 0


RAISE = """
import resource, sys
from pathlib import Path
from elc_bert.data.format.descriptors import DESCRIPTORS
from elc_bert.data.format.indexed import IndexedDataset
datasets = [IndexedDataset(Path(sys.argv[1]) / f"d{i:03}") for i in range(100)]
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], len(DESCRIPTORS))
"""


def test_the_limit_is_raised_as_far_as_allowed(folder):
    def before() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 1024))

    assert run_script(RAISE, folder, before=before) == "1024 200\n"
    assert run_script(RAISE, folder) == f"{LIMIT} {LIMIT // 4}\n"


THREADS = """
import sys, threading
from pathlib import Path
import numpy as np
from elc_bert.data.format.indexed import IndexedDataset
datasets = [IndexedDataset(Path(sys.argv[1]) / f"d{i:03}") for i in range(60)]
wrong = []
def read(seed):
    draw = np.random.default_rng(seed)
    for number in draw.integers(0, 60, 400):
        found = datasets[number].gather(np.arange(30)) if seed % 2 else datasets[number].tokens
        if (found != 6 + number).any():
            wrong.append(number)
threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
[each.start() for each in threads]
[each.join() for each in threads]
print(wrong)
"""


def test_threads_may_close_the_files_of_each_other(folder):
    """Draws with seeds 0 to 7."""
    assert run_script(THREADS, folder) == "[]\n"


def test_the_least_recently_used_file_is_closed_first(folder, monkeypatch):
    files = [MappedFile(folder / f"d00{number}.bin") for number in range(4)]
    cache = DescriptorCache()
    monkeypatch.setattr(cache, "_capacity", lambda: 3)
    before = psutil.Process().num_fds()
    for number in (0, 1, 2, 0, 3):
        cache.get(files[number], files[number]._open)
    assert len(cache) == 3
    assert psutil.Process().num_fds() == before + 3
    opened = []
    for number in (0, 2, 3, 1):
        cache.get(files[number], lambda number=number: opened.append(number) or files[number]._open())
    assert opened == [1]


def test_a_file_that_was_closed_and_replaced_is_an_error(tmp_path):
    path = tmp_path / "file"
    for change in (
        lambda: os.replace(tmp_path / "new", path),
        lambda: path.write_bytes(b"new"),
        lambda: path.unlink(),
    ):
        path.write_bytes(b"old")
        (tmp_path / "new").write_bytes(b"old")
        file = MappedFile(path)
        DESCRIPTORS.drop(file)
        assert file.gather("u1", 0, np.arange(3)).tobytes() == b"old"  # opened again
        DESCRIPTORS.drop(file)
        change()
        with pytest.raises(UserError, match=f"{path}: (replaced or changed|No such file)"):
            file.gather("u1", 0, np.arange(3))
        with pytest.raises(UserError, match=f"{path}: (replaced or changed|No such file)"):
            file.array("u1", 0, 3)


EXHAUSTED = """
import os, sys
import numpy as np
from elc_bert.data.format.descriptors import DESCRIPTORS
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.manifest import Manifest
from elc_bert.data.format.segments import SegmentIndex
from elc_bert.utils.errors import UserError
folder = sys.argv[1]
def exhaust():
    while True:
        try:
            os.open("/dev/null", os.O_RDONLY)
        except OSError:
            return
dataset = IndexedDataset(f"{folder}/d000")
exhaust()
other = IndexedDataset(f"{folder}/d001")  # takes the descriptors of the first one
assert other.gather(np.arange(3)).tolist() == [7, 7, 7]
DESCRIPTORS._kept.clear()
exhaust()
for use in (
    lambda: IndexedDataset(f"{folder}/d002"),
    lambda: dataset.gather(np.arange(3)),
    lambda: dataset.lengths,
    lambda: SegmentIndex(f"{folder}/d002.segments-32.npy", 30, 1, "the command"),
    lambda: Manifest.load(dataset.prefix),
):
    try:
        use()
    except UserError as error:
        print(error)
"""


def test_too_many_open_files_is_never_a_reason_to_delete_data(folder):
    lines = run_script(EXHAUSTED, folder).splitlines()
    names = ["d002.idx", "d000.bin", "d000.idx", "d002.segments-32.npy", "d000.json"]
    assert [line.split(":")[0] for line in lines] == [f"{folder}/{name}" for name in names]
    for line in lines:
        assert "Too many open files; raise the limit on open files (ulimit -n)" in line
