"""What the signs of life of all ranks say about the run."""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from elc_bert.distributed.exit_status import FAILED, LOST_A_RANK
from elc_bert.distributed.watchdog.stack_traces import Whereabouts
from elc_bert.utils.text import numbers_in_short

SETTING_UP = "setting up"
TRAINING = "training"


@dataclass(frozen=True)
class Limits:
    """How long the watch waits, in seconds."""

    silence: float = 120.0
    """A rank that gives no sign of life for so long is lost."""
    hang: float | None = None
    """The run hangs if no rank makes progress for so long; None to wait for ever."""

    @property
    def interval(self) -> float:
        """Between signs of life."""
        return self.silence / 12


@dataclass
class Member:
    """A rank as its last sign of life shows it."""

    rank: int
    host: str
    pid: int
    step: int = 0
    """The last that it began."""
    doing: str = SETTING_UP
    idle: float = 0.0
    """Seconds without progress."""
    state: Literal["running", "failed", "died", "ended"] = "running"
    """``failed``: by an error of its own, and has said so; ``ended``: in order."""
    heard: float = 0.0
    """When it last gave a sign of life, by the clock of who keeps this."""
    whereabouts: Whereabouts | None = None
    """Of its main thread, where it was asked and has answered."""


@dataclass(frozen=True)
class Verdict:
    """Why the run cannot go on."""

    kind: Literal["failed", "lost", "hangs"]
    culprits: dict[int, str] = field(default_factory=dict)
    """What each of these ranks did; of a hang it takes whereabouts to know."""

    @property
    def status(self) -> int:
        """With which all ranks end."""
        return FAILED if self.kind == "failed" else LOST_A_RANK


def decide(members: Iterable[Member], now: float, limits: Limits) -> Verdict | None:
    """The verdict, or None as long as the run may go on.

    Args:
        members: all that have joined.
        now: by the clock of ``Member.heard``.
    """
    running = [member for member in members if member.state != "ended"]
    if failed := [member.rank for member in running if member.state == "failed"]:
        return Verdict("failed", dict.fromkeys(failed, "failed"))
    lost = {member.rank: "died" for member in running if member.state == "died"}
    # Ranks can die of the loss of a host (NCCL ends them) before its silence is long enough: name it, too.
    limit = limits.silence / 4 if lost else limits.silence
    for member in running:
        if member.state != "died" and (silence := now - member.heard) > limit:
            lost[member.rank] = f"gave no sign of life for {silence:.0f} s"
    if lost:
        return Verdict("lost", lost)
    if limits.hang and running and min(member.idle for member in running) > limits.hang:
        return Verdict("hangs")
    return None


def loss(verdict: Verdict, members: Iterable[Member], step: int, size: int) -> str:
    """The line about ranks that were lost.

    Args:
        verdict: that there are some.
        members: among them those that were lost.
        step: of the rank that tells it. The lost one's is no other, or at most one away.
        size: number of ranks.
    """
    lost = sorted(
        (member for member in members if member.rank in verdict.culprits),
        key=lambda member: (verdict.culprits[member.rank], member.rank),
    )
    told = [
        f"{_names(group)} {what}" for what, group in groupby(lost, lambda each: verdict.culprits[each.rank])
    ]
    latest = max(lost, key=lambda member: member.step)
    when = _when(TRAINING, step) if step > latest.step else _when(latest.doing, latest.step)
    return f"error: {' and '.join(told)} {when}; {_end(max(step, latest.step), size)}"


def hang(members: Collection[Member]) -> str:
    """The report of a hang: a line on the whole, and one for each rank or those that do the same."""
    first = _suspects(members)
    latest = max(members, key=lambda member: member.step)
    idle, when = min(member.idle for member in members), _when(latest.doing, latest.step)
    cause = f"the others wait for {_names(first)}" if first else "all ranks wait for each other"
    lines = [f"error: no progress for {idle:.0f} s {when}, {cause}; {_end(latest.step, len(members))}"]
    rest = [member for member in members if member not in first]
    for group in (first, rest):
        for text, same in groupby(sorted(group, key=lambda each: (_state(each), each.rank)), _state):
            lines.append(f"  {_names(same)}: {text}")
    return "\n".join(lines)


def failure(member: Member, error: BaseException, size: int) -> str:
    """The line about an exception on one rank, which follows its traceback."""
    what = f"{type(error).__name__}: {error}".splitlines()[0]
    when = _when(member.doing, member.step)
    return f"error: {_names([member])} failed {when}: {what}; the run stops on all {size} ranks"


def _suspects(members: Collection[Member]) -> list[Member]:
    """Ranks for which the others seem to wait: those in no collective, or behind, or elsewhere than most."""
    places = Counter(member.whereabouts for member in members)
    (usual, most), behind = places.most_common(1)[0], min(member.step for member in members)
    for suspects in (
        [member for member in members if not (member.whereabouts and member.whereabouts.collective)],
        [member for member in members if member.step == behind],
        [member for member in members if member.whereabouts != usual and most > len(members) / 2],
    ):
        # On a GPU the host waits for the device, and no rank is seen in a collective.
        if 0 < len(suspects) < len(members):
            return suspects
    return []


def _state(member: Member) -> str:
    what = member.whereabouts.text if member.whereabouts else "no answer"
    return f"{_when(member.doing, member.step)}, {what}"


def _when(doing: str, step: int) -> str:
    if doing == TRAINING:
        return f"during step {step}"
    return f"while {doing} after step {step}" if step else f"while {doing}"


def _end(step: int, size: int) -> str:
    again = "start it again with --resume auto" if step else "start it again"
    return f"the run stops on all {size} ranks; {again}"


def _names(members: Iterable[Member]) -> str:
    """``rank 3 on node-b (pid 1234)``, or ``ranks 0-7 on node-a, ranks 8-15 on node-b``."""
    names = []
    for host, group in groupby(sorted(members, key=lambda each: each.rank), lambda each: each.host):
        here = list(group)
        if len(here) == 1:
            names.append(f"rank {here[0].rank} on {host} (pid {here[0].pid})")
        else:
            names.append(f"ranks {numbers_in_short([member.rank for member in here])} on {host}")
    return ", ".join(names)
