"""The work folder in which a dataset is written before it is moved into place."""

import subprocess
import sys

import pytest

from data_tools.dataset_output import new_dataset, work_folder
from elc_bert.utils.errors import UserError

HOLD = """
import fcntl, sys
with open(sys.argv[1], "a+") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_process_without_the_lock_does_not_touch_the_work_folder(tmp_path):
    prefix = tmp_path / "d"
    lock = work_folder(prefix) / "lock"
    lock.parent.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"{prefix}: another process"), new_dataset(prefix, False):
            pass
        assert lock.exists()
        other.communicate("")
    with pytest.raises(ZeroDivisionError), new_dataset(prefix, False) as staged:
        staged.with_name("d.bin").write_bytes(b"half" * (1 // 0))
    assert list(tmp_path.iterdir()) == []
