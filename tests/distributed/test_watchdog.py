"""A rank that dies or hangs ends all others, soon and with one message."""

import json
import re
import selectors
import subprocess
import traceback
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from elc_bert.distributed.exit_status import LOST_A_RANK
from elc_bert.distributed.watchdog.diagnosis import Limits, Member, Verdict, decide, hang, loss
from elc_bert.distributed.watchdog.stack_traces import Whereabouts, describe
from tests.distributed.watch_each import RANKS
from tests.support.launching import kill, last_step, run, seconds_until, start

LIMIT = Limits(silence=60.0, hang=600.0)
IN_ALL_REDUCE = Whereabouts("all_reduce", "waits in all_reduce of train_step (step.py:37)")
IN_BARRIER = Whereabouts("barrier", "waits in barrier of save (checkpoint.py:131)")
ASLEEP = Whereabouts("", "in sleep (trouble.py:1)")


def ranks(*changes: dict) -> list[Member]:
    """In step 18, heard just now, two on a host; each with some changes."""
    return [
        Member(rank, f"node-{'abcd'[rank // 2]}", 100 + rank, **{"step": 18, "doing": "training", **change})
        for rank, change in enumerate(changes)
    ]


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ([{}, {}, {}], None),
        ([{}, {"state": "ended"}, {}], None),
        ([{}, {"state": "died"}, {}], Verdict("lost", {1: "died"})),
        ([{}, {"heard": -59.0}, {}], None),
        ([{}, {"heard": -61.0}, {}], Verdict("lost", {1: "gave no sign of life for 61 s"})),
        ([{}, {"heard": -61.0, "state": "ended"}, {}], None),
        # The loss of its host has killed another rank before the silence was long enough.
        (
            [{}, {"heard": -20.0}, {"state": "died"}],
            Verdict("lost", {2: "died", 1: "gave no sign of life for 20 s"}),
        ),
        # Who knows why it ends explains why others do.
        ([{"state": "died"}, {"state": "failed"}, {}], Verdict("failed", {1: "failed"})),
        # One that makes progress, as while it scores minimal pairs, is waited for.
        ([{"idle": 700.0}, {"idle": 1.0}, {"idle": 700.0}], None),
        ([{"idle": 700.0}, {"idle": 610.0}, {"idle": 700.0}], Verdict("hangs")),
        ([{"idle": 700.0}, {"idle": 610.0}, {"state": "ended"}], Verdict("hangs")),
    ],
)
def test_the_verdict_follows_from_the_signs_of_life(changes, verdict):
    assert decide(ranks(*changes), 0.0, LIMIT) == verdict


def test_without_a_limit_a_hang_is_waited_for():
    assert decide(ranks({"idle": 1e9}, {"idle": 1e9}), 0.0, Limits(hang=None)) is None


@pytest.mark.parametrize(
    ("culprits", "changes", "message"),
    [
        ({2: "died"}, {}, "rank 2 on node-b (pid 102) died during step 18"),
        ({2: "died"}, {"step": 17}, "rank 2 on node-b (pid 102) died during step 18"),
        ({2: "died"}, {"step": 19}, "rank 2 on node-b (pid 102) died during step 19"),
        (
            {2: "died"},
            {"doing": "saving a checkpoint"},
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
def test_the_message_names_rank_host_and_step(culprits, changes, message):
    members = ranks({}, {}, changes, {})
    assert loss(Verdict("lost", culprits), members, 18, 4) == (
        f"error: {message}; the run stops on all 4 ranks; start it again with --resume auto"
    )


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        (
            [{"whereabouts": IN_ALL_REDUCE}, {"whereabouts": ASLEEP}, {"whereabouts": IN_ALL_REDUCE}],
            "the others wait for rank 1 on node-a (pid 101)",
        ),
        (
            [{"whereabouts": IN_ALL_REDUCE}, {"whereabouts": IN_ALL_REDUCE}, {}],
            "the others wait for rank 2 on node-b (pid 102)",
        ),
        (
            [{"whereabouts": IN_ALL_REDUCE}, {"whereabouts": IN_ALL_REDUCE, "step": 17}],
            "the others wait for rank 1 on node-a (pid 101)",
        ),
        (
            [{"whereabouts": IN_ALL_REDUCE}, {"whereabouts": IN_ALL_REDUCE}, {"whereabouts": IN_BARRIER}],
            "the others wait for rank 2 on node-b (pid 102)",
        ),
        ([{"whereabouts": IN_ALL_REDUCE}, {"whereabouts": IN_BARRIER}], "all ranks wait for each other"),
    ],
)
def test_a_hang_is_laid_to_the_rank_that_is_elsewhere(changes, cause):
    line, *table = hang(ranks(*({"idle": 601.0, **change} for change in changes))).splitlines()
    assert line == (
        f"error: no progress for 601 s during step 18, {cause}; the run stops on all {len(changes)} ranks; "
        "start it again with --resume auto"
    )
    if "wait for rank" in cause:
        assert cause.partition("wait for ")[2] in table[0], "it comes first"


def test_ranks_that_wait_alike_share_a_line():
    changes = [{"whereabouts": ASLEEP if rank == 2 else IN_ALL_REDUCE} for rank in range(6)]
    assert hang(ranks(*changes)).splitlines()[1:] == [
        "  rank 2 on node-b (pid 102): during step 18, in sleep (trouble.py:1)",
        "  ranks 0-1 on node-a, rank 3 on node-b (pid 103), ranks 4-5 on node-c: during step 18, "
        "waits in all_reduce of train_step (step.py:37)",
    ]


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (
            [
                ("/env/elc_bert/training/step.py", 37, "train_step", "dist.all_reduce(predicted)"),
                ("/env/torch/distributed/c10d_logger.py", 83, "wrapper", "return func(*args, **kwargs)"),
                ("/env/torch/distributed/distributed_c10d.py", 3000, "all_reduce", "work.wait()"),
            ],
            Whereabouts("all_reduce", "waits in all_reduce of train_step (elc_bert/training/step.py:37)"),
        ),
        (
            [
                ("/env/deepspeed/runtime/engine.py", 10, "allreduce_gradients", "self.reduce()"),
                ("/env/deepspeed/comm/comm.py", 20, "log_wrapper", "return func(*args, **kwargs)"),
                ("/env/deepspeed/comm/comm.py", 30, "all_reduce", "return cdb.all_reduce(tensor)"),
                ("/env/torch/distributed/distributed_c10d.py", 3000, "all_reduce", "work.wait()"),
            ],
            Whereabouts(
                "all_reduce", "waits in all_reduce of allreduce_gradients (deepspeed/runtime/engine.py:10)"
            ),
        ),
        (
            [("/env/elc_bert/optim/lamb.py", 215, "norms", "handle.wait()")],
            Whereabouts("Work.wait", "waits in Work.wait of norms (elc_bert/optim/lamb.py:215)"),
        ),
        (
            [
                ("/env/elc_bert/training/run.py", 66, "batches", "for step in loader:"),
                (selectors.__file__, 415, "select", "self._selector.poll(timeout)"),
            ],
            Whereabouts(
                "",
                "in select (python3.11/selectors.py:415), called from batches (elc_bert/training/run.py:66)",
            ),
        ),
    ],
)
def test_a_stack_is_told_in_words(frames, expected, monkeypatch):
    monkeypatch.setattr("elc_bert.distributed.watchdog.stack_traces._OURS", "/env/elc_bert")
    stack = [traceback.FrameSummary(file, number, name, line=line) for file, number, name, line in frames]
    assert describe(stack) == expected


@dataclass(frozen=True)
class End:
    """Of a run."""

    statuses: list[int]
    """By rank."""
    output: str


@pytest.fixture(scope="module")
def ends(tmp_path_factory) -> dict[str, End]:
    """How runs end in which something happens to one of three ranks."""
    folder = tmp_path_factory.mktemp("watch")
    done = run("python", 1, [folder], timeout=200, script=Path(__file__).with_name("watch_each.py"))
    assert done.status == 0, done.output
    recorded = json.loads((folder / "ends.json").read_text())
    return {
        name: End([of_rank[str(rank)] for rank in range(RANKS)], (folder / f"{name}.txt").read_text())
        for name, of_rank in recorded.items()
    }


LOST = r"(?s)\s*error: {} on \S+ \(pid \d+\) {} during step 3; the run stops on all 3 ranks; "
AGAIN = r"start it again with --resume auto\s*"


@pytest.mark.launcher
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("name", "statuses", "output"),
    [
        ("nothing", [0, 0, 0], ""),
        ("death", [76, -9, 76], LOST.format("rank 1", "died") + AGAIN),
        ("death of rank 0", [-9, 76, 76], LOST.format("rank 0", "died") + AGAIN),
        # Stopped processes are killed by the others, or the launcher would wait for them.
        ("stop", [76, 76, -9], LOST.format("rank 2", r"gave no sign of life for \d+ s") + AGAIN),
        ("stop of rank 0", [-9, 76, 76], LOST.format("rank 0", r"gave no sign of life for \d+ s") + AGAIN),
        (
            "hang",
            [76, 76, 76],
            r"\s*error: no progress for \d+ s during step 3, the others wait for rank 1 on .*; the run .*\n"
            r"  rank 1 on \S+ \(pid \d+\): during step 3, in sleep_for_ever \(.*/watch_each.py:\d+\)\n"
            r"  rank.* 0.* 2.*: during step 3, waits in all_reduce of train .*\s*",
        ),
        (
            "bug",
            [1, 1, 1],
            r"(?s)\s*Traceback .*\nZeroDivisionError: of the test\n"
            r"error: rank 1 on \S+ \(pid \d+\) failed during step 3: ZeroDivisionError: of the test; "
            r"the run stops on all 3 ranks\s*",
        ),
        ("mistake", [1, 1, 1], r"\s*error on rank 1: only here\s*"),
    ],
)
def test_all_ranks_end_with_one_message(ends, name, statuses, output):
    assert re.fullmatch(output, ends[name].output), ends[name].output
    assert ends[name].output.count("Traceback") == (name == "bug")
    assert ends[name].statuses == statuses


@pytest.mark.launcher
@pytest.mark.timeout(240)
def test_the_death_of_a_rank_ends_a_launch(configure, tmp_path):
    # With data workers, which are copies of a rank and outlive it for some seconds.
    config = configure(tmp_path, training={"max_steps": 10_000}, data={"workers": 1})
    process = start("deepspeed", 2, ["--deepspeed_config", config])
    try:
        for _ in seconds_until(200):
            if last_step(tmp_path / "run") > 3:
                break
            assert process.poll() is None, process.communicate()
        _rank(process, 1).kill()
        _, errors = process.communicate(timeout=30)
    finally:
        kill(process)
    (line,) = re.findall("error: .*", errors)
    assert re.fullmatch(
        r"error: rank 1 on \S+ \(pid \d+\) died during step \d+; the run stops on all 2 ranks; "
        "start it again with --resume auto",
        line,
    )
    assert "Traceback" not in errors
    # The launcher passes on what it sees first: that of a rank that was ended, or 256 - SIGKILL.
    assert process.returncode in (LOST_A_RANK, 247)


def _rank(launcher: subprocess.Popen, rank: int) -> psutil.Process:
    """Of the processes that were started as this rank the first, of which others were forked."""
    children = psutil.Process(launcher.pid).children(recursive=True)
    return next(child for child in children if f"--local_rank={rank}" in child.cmdline())
