"""The watchdog: if a rank dies or hangs, all ranks end soon and with one message."""

import contextlib
import json
import os
import re
import selectors
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from elc_bert.distributed.exit_status import LOST_A_RANK
from elc_bert.distributed.watchdog.diagnosis import (
    Diagnosis,
    RankStatus,
    Timeouts,
    diagnose,
    hang_message,
    lost_ranks_message,
)
from elc_bert.distributed.watchdog.stack_traces import Location, location_of
from elc_bert.utils.logs import LOG_FILE
from tests.distributed.run_each_fault import RANKS
from tests.support.launching import environment, kill, last_step, poll, run, start

TIMEOUTS = Timeouts(silence=60.0, hang=600.0)
IN_ALL_REDUCE = Location("all_reduce", "waiting in all_reduce, called from train_step (step.py:37)")
IN_BARRIER = Location("barrier", "waiting in barrier, called from save (checkpoint.py:131)")
ASLEEP = Location("", "in sleep (trouble.py:1)")


def statuses(*changes: dict) -> list[RankStatus]:
    """Return statuses of healthy ranks in step 18, two per host, with the given change of each rank."""
    defaults = {"step": 18, "activity": "training"}
    return [
        RankStatus(rank, f"node-{'abcd'[rank // 2]}", 100 + rank, **{**defaults, **change})
        for rank, change in enumerate(changes)
    ]


@pytest.mark.parametrize(
    ("changes", "kind", "faults"),
    [
        ([{}, {}, {}], None, None),
        ([{}, {"state": "ended"}, {}], None, None),
        ([{}, {"state": "died"}, {}], "lost", {1: "died"}),
        ([{}, {"last_heartbeat": -59.0}, {}], None, None),
        ([{}, {"last_heartbeat": -61.0}, {}], "lost", {1: "no heartbeat for 61 s"}),
        ([{}, {"last_heartbeat": -61.0, "state": "ended"}, {}], None, None),
        # Rank 1 is silent because its host was lost, and its loss has killed rank 2 before the full timeout.
        (
            [{}, {"last_heartbeat": -20.0}, {"state": "died"}],
            "lost",
            {1: "no heartbeat for 20 s", 2: "died"},
        ),
        # A rank that reports its own failure explains why others died.
        ([{"state": "died"}, {"state": "failed"}, {}], "failed", {1: "failed"}),
        # The run does not hang while one rank makes progress, as when it scores minimal pairs.
        ([{"idle": 700.0}, {"idle": 1.0}, {"idle": 700.0}], None, None),
        ([{"idle": 700.0}, {"idle": 610.0}, {"idle": 700.0}], "hung", {}),
        ([{"idle": 700.0}, {"idle": 610.0}, {"state": "ended"}], "hung", {}),
    ],
)
def test_diagnosis_follows_from_heartbeats(changes, kind, faults):
    diagnosis = diagnose(statuses(*changes), 0.0, TIMEOUTS)
    if kind is None:
        assert diagnosis is None
        return
    assert diagnosis is not None
    assert diagnosis.kind == kind
    assert sorted(diagnosis.faulty_ranks) == sorted(faults)
    for rank, fact in faults.items():
        assert fact in diagnosis.faulty_ranks[rank]


def test_a_hang_is_no_failure_without_a_timeout():
    assert diagnose(statuses({"idle": 1e9}, {"idle": 1e9}), 0.0, Timeouts(hang=None)) is None


@pytest.mark.parametrize(
    ("faulty_ranks", "changes", "facts"),
    [
        ({2: "died"}, {}, "rank 2 on node-b (pid 102) died during step 18"),
        ({2: "died"}, {"step": 17}, "rank 2 on node-b (pid 102) died during step 18"),
        ({2: "died"}, {"step": 19}, "rank 2 on node-b (pid 102) died during step 19"),
        (
            {2: "died"},
            {"activity": "saving a checkpoint"},
            "rank 2 on node-b (pid 102) died while saving a checkpoint after step 18",
        ),
        ({2: "died", 3: "died"}, {}, "ranks 2-3 on node-b died during step 18"),
        (
            {0: "died", 1: "died", 3: "was silent"},
            {},
            "ranks 0-1 on node-a died and rank 3 on node-b (pid 103) was silent during step 18",
        ),
    ],
)
def test_message_about_lost_ranks_names_rank_host_and_step(faulty_ranks, changes, facts):
    diagnosis = Diagnosis("lost", faulty_ranks)
    message = lost_ranks_message(diagnosis, statuses({}, {}, changes, {}), 18, 4)
    first, *rest = message.split("; ")
    assert first == f"error: {facts}"
    assert "all 4 ranks" in rest[0]
    assert message.endswith("--resume auto")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("changes", "suspect"),
    [
        (
            [{"location": IN_ALL_REDUCE}, {"location": ASLEEP}, {"location": IN_ALL_REDUCE}],
            "rank 1 on node-a (pid 101)",
        ),
        ([{"location": IN_ALL_REDUCE}, {"location": IN_ALL_REDUCE}, {}], "rank 2 on node-b (pid 102)"),
        (
            [{"location": IN_ALL_REDUCE}, {"location": IN_ALL_REDUCE, "step": 17}],
            "rank 1 on node-a (pid 101)",
        ),
        (
            [{"location": IN_ALL_REDUCE}, {"location": IN_ALL_REDUCE}, {"location": IN_BARRIER}],
            "rank 2 on node-b (pid 102)",
        ),
        ([{"location": IN_ALL_REDUCE}, {"location": IN_BARRIER}], None),
    ],
)
def test_hang_message_blames_the_rank_that_the_others_wait_for(changes, suspect):
    error, *table = hang_message(statuses(*({"idle": 601.0, **change} for change in changes))).splitlines()
    cause, *rest = error.split("; ")
    assert re.match("error: .* 601 s during step 18", cause)
    if suspect is None:
        assert "each other" in cause
    else:
        assert cause.endswith(f"waiting for {suspect}")
        assert suspect in table[0]
    assert f"all {len(changes)} ranks" in rest[0]
    assert error.endswith("--resume auto")


def test_hang_message_has_one_line_for_ranks_at_the_same_location():
    changes = [{"location": ASLEEP if rank == 2 else IN_ALL_REDUCE} for rank in range(6)]
    assert hang_message(statuses(*changes)).splitlines()[1:] == [
        f"  rank 2 on node-b (pid 102): during step 18, {ASLEEP.text}",
        "  ranks 0-1 on node-a, rank 3 on node-b (pid 103), ranks 4-5 on node-c: during step 18, "
        f"{IN_ALL_REDUCE.text}",
    ]


@pytest.mark.parametrize(
    ("frames", "collective", "places"),
    [
        (
            [
                ("/env/elc_bert/training/step.py", 37, "train_step", "dist.all_reduce(predicted)"),
                ("/env/torch/distributed/c10d_logger.py", 83, "wrapper", "return func(*args, **kwargs)"),
                ("/env/torch/distributed/distributed_c10d.py", 3000, "all_reduce", "work.wait()"),
            ],
            "all_reduce",
            ["train_step (elc_bert/training/step.py:37)"],
        ),
        (
            [
                ("/env/deepspeed/runtime/engine.py", 10, "allreduce_gradients", "self.reduce()"),
                ("/env/deepspeed/comm/comm.py", 20, "log_wrapper", "return func(*args, **kwargs)"),
                ("/env/deepspeed/comm/comm.py", 30, "all_reduce", "return cdb.all_reduce(tensor)"),
                ("/env/torch/distributed/distributed_c10d.py", 3000, "all_reduce", "work.wait()"),
            ],
            "all_reduce",
            ["allreduce_gradients (deepspeed/runtime/engine.py:10)"],
        ),
        (
            [("/env/elc_bert/optim/lamb.py", 215, "norms", "handle.wait()")],
            "Work.wait",
            ["norms (elc_bert/optim/lamb.py:215)"],
        ),
        (
            [
                ("/env/elc_bert/training/run.py", 66, "batches", "for step in loader:"),
                (selectors.__file__, 415, "select", "self._selector.poll(timeout)"),
            ],
            "",
            ["select (python3.11/selectors.py:415)", "batches (elc_bert/training/run.py:66)"],
        ),
    ],
)
def test_location_of_a_stack(frames, collective, places, monkeypatch):
    monkeypatch.setattr("elc_bert.distributed.watchdog.stack_traces._OWN_PACKAGE", "/env/elc_bert")
    stack = [traceback.FrameSummary(file, number, name, line=line) for file, number, name, line in frames]
    location = location_of(stack)
    assert location.collective == collective
    assert location.text.startswith(f"waiting in {collective}, " if collective else "in ")
    assert re.findall(r"\S+ \(\S+:\d+\)", location.text) == places


@dataclass(frozen=True)
class Outcome:
    """Outcome of a run with a fault."""

    statuses: list[int]
    """Exit status of each rank."""
    output: str


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, Outcome]:
    """Outcomes of runs of three ranks, by fault."""
    folder = tmp_path_factory.mktemp("faults")
    result = run("python", 1, [folder], timeout=200, script=Path(__file__).with_name("run_each_fault.py"))
    assert result.status == 0, result.output
    exit_statuses = json.loads((folder / "exit_statuses.json").read_text())
    return {
        name: Outcome([by_rank[str(rank)] for rank in range(RANKS)], (folder / f"{name}.txt").read_text())
        for name, by_rank in exit_statuses.items()
    }


LOST = r"\s*error: {} on \S+ \(pid \d+\) {} during step 3; .* all 3 ranks; .*--resume auto\s*"


@pytest.mark.launcher
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("name", "statuses", "output"),
    [
        ("no fault", [0, 0, 0], ""),
        ("death", [76, -9, 76], LOST.format("rank 1", "died")),
        ("death of rank 0", [-9, 76, 76], LOST.format("rank 0", "died")),
        # Stopped processes are killed by the other ranks, because the launcher would wait for them.
        ("stop", [76, 76, -9], LOST.format("rank 2", r".* no heartbeat for \d+ s")),
        ("stop of rank 0", [-9, 76, 76], LOST.format("rank 0", r".* no heartbeat for \d+ s")),
        (
            "hang",
            [76, 76, 76],
            r"\s*error: .* \d+ s during step 3: .* for rank 1 on \S+ \(pid \d+\); .* all 3 ranks; .*\n"
            r"  rank 1 on \S+ \(pid \d+\): during step 3, in sleep_forever \(.*/run_each_fault.py:\d+\)\n"
            r"  rank.* 0.* 2.*: during step 3, .* all_reduce.* train .*\s*",
        ),
        (
            "exception",
            [1, 1, 1],
            r"\s*Traceback (?s:.*)\nZeroDivisionError: raised by the test\n"
            r"error: rank 1 on \S+ \(pid \d+\) failed during step 3: ZeroDivisionError: raised by the test; "
            r".* all 3 ranks\s*",
        ),
        ("user error", [1, 1, 1], r"\s*error on rank 1: only on this rank\s*"),
    ],
)
def test_all_ranks_end_with_one_message(outcomes, name, statuses, output):
    assert re.fullmatch(output, outcomes[name].output), outcomes[name].output
    assert outcomes[name].output.count("Traceback") == (name == "exception")
    assert outcomes[name].statuses == statuses


@pytest.mark.launcher
@pytest.mark.timeout(240)
def test_death_of_a_rank_ends_a_launch(configure, tmp_path):
    # With data workers, which are forked from a rank and survive it by some seconds.
    config = configure(tmp_path, training={"max_steps": 10_000}, data={"workers": 1})
    process = start("deepspeed", 2, ["--deepspeed_config", config])
    try:
        for _ in poll(timeout=200):
            if last_step(tmp_path / "run") > 3:
                break
            assert process.poll() is None, process.communicate()
        _process_of_rank(process, 1).kill()
        _, errors = process.communicate(timeout=30)
    finally:
        kill(process)
    (line,) = re.findall("error: .*", errors)
    assert re.fullmatch(
        r"error: rank 1 on \S+ \(pid \d+\) died during step \d+; .* all 2 ranks; .*--resume auto", line
    )
    assert "Traceback" not in errors
    assert re.search(
        r" rank 0 ERROR error: rank 1 on \S+ \(pid \d+\) died", (tmp_path / "run" / LOG_FILE).read_text()
    )
    # The launcher returns the first status that it sees: that of a rank that was ended, or 256 - SIGKILL.
    assert process.returncode in (LOST_A_RANK, 247)


def _process_of_rank(launcher: subprocess.Popen, rank: int) -> psutil.Process:
    """Return the process of a rank. Its data workers have the same command line and come after it."""
    children = psutil.Process(launcher.pid).children(recursive=True)
    return next(child for child in children if f"--local_rank={rank}" in child.cmdline())


def test_the_final_message_is_in_the_log_file_even_if_nobody_reads_the_terminal(tmp_path):
    """A pipe that is full and has a reader that does not read blocks the thread that prints."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    code = (
        "import os, sys, pathlib\n"
        "from elc_bert.distributed.watchdog.heartbeats import print_final_message\n"
        "from elc_bert.utils import logs\n"
        "logs.configure(0)\n"
        "logs.open_file(pathlib.Path(sys.argv[1]), 0)\n"
        "sys.stdout.write('not flushed')\n"
        "print_final_message('error: rank 1 died')\n"
        "os._exit(76)\n"
    )
    variables = {name: value for name, value in environment().items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / LOG_FILE], stdout=writer, env=variables, timeout=60
    )
    os.close(reader)
    os.close(writer)
    assert done.returncode == 76
    assert "ERROR error: rank 1 died" in (tmp_path / LOG_FILE).read_text()
