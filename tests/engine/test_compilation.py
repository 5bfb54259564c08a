"""Operations that DeepSpeed compiles: AdamW needs none, and errors and stale locks end a run in one line."""

import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from torch.utils.file_baton import FileBaton

from elc_bert.engine import compilation
from elc_bert.utils.errors import UserError
from tests.support.launching import PRETRAIN_EACH, run

ADAMW = {"type": "AdamW", "params": {"lr": 0.003, "weight_decay": 0.1}}
OF_DEEPSPEED = {"type": "AdamW", "params": {"lr": 0.003, "torch_adam": False}}
OFFLOAD = {"stage": 2, "offload_optimizer": {"device": "cpu"}}


@pytest.fixture
def extensions(tmp_path, monkeypatch) -> Path:
    """Empty cache of compiled operations; there is no compiler on the path."""
    folder = tmp_path / "extensions"
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(folder))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    monkeypatch.delenv("CXX", raising=False)
    return folder


@pytest.fixture
def guarded(monkeypatch):
    """Guard compilations in this process, until the end of the test."""
    from deepspeed.ops.op_builder.builder import OpBuilder

    monkeypatch.setattr(OpBuilder, "jit_load", OpBuilder.jit_load)
    monkeypatch.setattr(FileBaton, "wait", FileBaton.wait)
    monkeypatch.setattr(OpBuilder, "_loaded_ops", {})
    compilation.guard_compilation()


def fused_adam():
    from deepspeed.accelerator import get_accelerator

    return get_accelerator().create_op_builder("FusedAdamBuilder")


@pytest.mark.launcher
@pytest.mark.timeout(300)
def test_adamw_needs_no_compiler(configure, extensions, tmp_path):
    short = {"optimizer": ADAMW, "training": {"max_steps": 2}}
    offload = configure(tmp_path / "offload", zero_optimization=OFFLOAD, **short)
    plain = configure(tmp_path / "plain", **short)
    result = run("python", 1, [plain, offload], script=PRETRAIN_EACH)
    assert result.status == 0, result.output
    assert "compiling" not in result.output
    assert not extensions.exists()


@pytest.mark.launcher
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("zero", "name", "setting"),
    [
        ({}, "fused_adam", "optimizer.params.torch_adam = false"),
        (OFFLOAD, "cpu_adam", "DeepSpeed's own Adam with zero_optimization.offload_optimizer"),
    ],
)
def test_a_missing_compiler_is_an_error_of_one_line(configure, extensions, tmp_path, zero, name, setting):
    """DeepSpeed wraps the error of ``cpu_adam`` in another one."""
    config = configure(tmp_path, optimizer=OF_DEEPSPEED, zero_optimization=zero)
    result = run("python", 1, ["--deepspeed_config", config])
    assert (result.status, len(result.errors)) == (1, 1), result.output
    assert result.errors[0].startswith(f"DeepSpeed cannot compile its operation {name} (")
    assert result.errors[0].endswith(f"or do without {setting}")
    assert "Traceback" not in result.output
    assert "WARNING" not in result.output
    assert f"compiling DeepSpeed's {name}, which takes minutes; it is kept in {extensions}" in result.stdout


def test_a_stale_lock_is_an_error_that_names_it(guarded, extensions, monkeypatch):
    """The lock is what a killed process leaves."""
    folder = extensions / "fused_adam"
    folder.mkdir(parents=True)
    lock = folder / "lock"
    lock.touch()
    monkeypatch.setenv("CXX", sys.executable)  # the lock is found before anything is compiled
    long_ago = time.time() - compilation.ABANDONED_AFTER - 1
    os.utime(lock, (long_ago, long_ago))
    begin = time.monotonic()
    with pytest.raises(UserError) as error:
        fused_adam().load()
    reason = "left by a process that was killed while it compiled"
    assert str(error.value) == f"{lock}: {reason}; remove this file"
    assert time.monotonic() - begin < 20


def test_a_lock_that_may_be_in_use_is_waited_for(guarded, tmp_path, monkeypatch, caplog):
    """It is young, as of a process on another host, or old but open in a process of this host."""
    caplog.set_level(logging.INFO, "elc_bert")
    lock = tmp_path / "lock"
    lock.touch()
    threading.Timer(1.0, lock.unlink).start()
    FileBaton(str(lock)).wait()
    assert not lock.exists()
    assert f"{lock}: waiting for the process that compiles there" in caplog.messages

    monkeypatch.setattr(compilation, "ABANDONED_AFTER", -1.0)
    hold = f"import os, time; os.open({str(lock)!r}, os.O_CREAT); print(flush=True); time.sleep(1.5)"
    hold = f"{hold}; os.remove({str(lock)!r})"
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        FileBaton(str(lock)).wait()
    assert not lock.exists()
    lock.touch()
    with pytest.raises(UserError, match="left by a process that was killed"):
        FileBaton(str(lock)).wait()


def test_a_compilation_that_fails_is_an_error_of_one_line(guarded, extensions, monkeypatch):
    """The compiler on the path fails with a message, as one without OpenMP does."""
    compiler = extensions.parent / "c++"
    answer = "[ \"$1\" = --version ] && echo 'g++ 12.1.0' && exit 0"
    compiler.write_text(f"#!/bin/sh\n{answer}\necho 'x.cpp:1: fatal error: omp.h: None' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(UserError, match=r"^DeepSpeed cannot .* fused_adam \(.*omp\.h.*\); install"):
        fused_adam().load()


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (
            "Error building extension 'a'\n[1/2] c++ x\nx.cpp:1: fatal error: omp.h: None\n",
            "x.cpp:1: fatal error: omp.h: None",
        ),
        ("Error building extension 'a'\n/bin/sh: c++: not found\nerror: ninja", "/bin/sh: c++: not found"),
        ("ninja is required", "ninja is required"),
        ("", "RuntimeError"),
        ("x" * 201, "x" * 200 + "..."),
    ],
)
def test_the_reason_is_the_line_that_names_the_problem(output, expected):
    assert compilation._reason(RuntimeError(output)) == expected
