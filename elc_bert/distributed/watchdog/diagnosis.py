"""Diagnosis of a run from the heartbeats of its ranks, and the messages that describe a failure."""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal, TypeAlias

from elc_bert.distributed.exit_status import FAILED, LOST_A_RANK
from elc_bert.distributed.watchdog.stack_traces import Location
from elc_bert.utils.text import numbers_in_short

SETTING_UP = "setting up"
"""Activity of a rank before its first step."""
TRAINING = "training"
"""Activity of a rank within an optimizer step."""

State: TypeAlias = Literal["running", "failed", "died", "ended"]
"""State of a rank. ``failed``: it has raised an exception and printed it. ``died``: its connection ended.
``ended``: it has exited cleanly."""


@dataclass(frozen=True)
class Timeouts:
    """Timeouts of the watchdog, in seconds."""

    silence: float = 120.0
    """Time without a heartbeat after which a rank counts as lost."""
    hang: float | None = None
    """Time without progress on any rank after which the run counts as hung; None to wait without limit."""

    @property
    def heartbeat_interval(self) -> float:
        """Time between two heartbeats of a rank."""
        return self.silence / 12


@dataclass
class RankStatus:
    """Status of a rank, as in its last heartbeat."""

    rank: int
    """Rank of the process."""
    host: str
    """Host that the rank runs on."""
    pid: int
    """Process id of the rank on its host."""
    step: int = 0
    """Last optimizer step that the rank has begun; 0 before the first."""
    activity: str = SETTING_UP
    """Current activity, such as ``training`` or ``saving a checkpoint``."""
    idle: float = 0.0
    """Seconds since the rank last made progress."""
    state: State = "running"
    """State of the rank, ``running`` unless it has reported or caused another one."""
    last_heartbeat: float = 0.0
    """Time at which the last heartbeat arrived, by the clock of the rank that received it."""
    location: Location | None = None
    """Location of the rank's main thread; None until the rank has answered a request for it."""


@dataclass(frozen=True)
class Diagnosis:
    """Reason why a run cannot continue."""

    kind: Literal["failed", "lost", "hung"]
    """``failed`` by an exception, ``lost`` ranks, or ``hung``."""
    faulty_ranks: dict[int, str] = field(default_factory=dict)
    """Fault of each failed or lost rank, such as ``died``. Empty for a hang, which stack traces explain."""

    @property
    def exit_status(self) -> int:
        """Exit status shared by all ranks."""
        return FAILED if self.kind == "failed" else LOST_A_RANK


def diagnose(statuses: Iterable[RankStatus], now: float, timeouts: Timeouts) -> Diagnosis | None:
    """Decide from the ranks' last heartbeats whether the run is healthy.

    Args:
        statuses: Status of every rank that has connected.
        now: Time, by the clock of ``RankStatus.last_heartbeat``.
        timeouts: Timeouts of the watchdog.

    Returns:
        Diagnosis of the failure, or None if the run is healthy.
    """
    active = [status for status in statuses if status.state != "ended"]
    if failed := [status.rank for status in active if status.state == "failed"]:
        return Diagnosis("failed", dict.fromkeys(failed, "failed"))
    lost = {status.rank: "died" for status in active if status.state == "died"}
    # The loss of a host can kill ranks on other hosts (NCCL aborts them) before that host has been silent for
    # the whole timeout. A shorter one names the host in the same message.
    timeout = timeouts.silence / 4 if lost else timeouts.silence
    for status in active:
        if status.state != "died" and (silence := now - status.last_heartbeat) > timeout:
            lost[status.rank] = f"sent no heartbeat for {silence:.0f} s"
    if lost:
        return Diagnosis("lost", lost)
    if timeouts.hang and active and min(status.idle for status in active) > timeouts.hang:
        return Diagnosis("hung")
    return None


def lost_ranks_message(
    diagnosis: Diagnosis, statuses: Iterable[RankStatus], step: int, world_size: int
) -> str:
    """Return the error message about lost ranks, one line.

    Args:
        diagnosis: Diagnosis that ranks were lost.
        statuses: Status of at least the lost ranks.
        step: Step of the rank that prints the message. That of the lost ranks differs by at most one.
        world_size: Number of ranks.
    """
    causes = diagnosis.faulty_ranks
    lost = sorted(
        (status for status in statuses if status.rank in causes),
        key=lambda status: (causes[status.rank], status.rank),
    )
    events = [
        f"{_names(group)} {cause}" for cause, group in groupby(lost, lambda status: causes[status.rank])
    ]
    latest = max(lost, key=lambda status: status.step)
    when = _when(TRAINING, step) if step > latest.step else _when(latest.activity, latest.step)
    return f"error: {' and '.join(events)} {when}; {_stop(max(step, latest.step), world_size)}"


def hang_message(statuses: Collection[RankStatus]) -> str:
    """Return the report of a hang: an error line, and one line for each group of ranks that do the same."""
    suspects = _hang_suspects(statuses)
    latest = max(statuses, key=lambda status: status.step)
    idle, when = min(status.idle for status in statuses), _when(latest.activity, latest.step)
    if len(statuses) == 1:
        cause = "this process waits without end"
    elif suspects:
        cause = f"the other ranks are waiting for {_names(suspects)}"
    else:
        cause = "all ranks are waiting for each other"
    lines = [f"error: no progress for {idle:.0f} s {when}: {cause}; {_stop(latest.step, len(statuses))}"]
    others = [status for status in statuses if status not in suspects]
    for group in (suspects, others):
        by_description = sorted(group, key=lambda status: (_describe(status), status.rank))
        for description, same in groupby(by_description, _describe):
            lines.append(f"  {_names(same)}: {description}")
    return "\n".join(lines)


def exception_message(status: RankStatus, error: BaseException, world_size: int) -> str:
    """Return the error message about an exception on one rank, one line that follows its traceback."""
    summary = f"{type(error).__name__}: {error}".splitlines()[0]
    when = _when(status.activity, status.step)
    return f"error: {_names([status])} failed {when}: {summary}; the run stops on all {world_size} ranks"


def _hang_suspects(statuses: Collection[RankStatus]) -> list[RankStatus]:
    """Return the ranks that the others seem to wait for, or an empty list.

    These are the ranks outside of any collective; else those in an earlier step than the rest; else those in
    another collective than the majority.
    """
    locations = Counter(status.location for status in statuses)
    (usual, count), earliest = locations.most_common(1)[0], min(status.step for status in statuses)
    for suspects in (
        [status for status in statuses if not (status.location and status.location.collective)],
        [status for status in statuses if status.step == earliest],
        [status for status in statuses if status.location != usual and count > len(statuses) / 2],
    ):
        # On a GPU the host waits for the device, so that all ranks can be outside of any collective.
        if 0 < len(suspects) < len(statuses):
            return suspects
    return []


def _describe(status: RankStatus) -> str:
    location = status.location.text if status.location else "did not answer"
    return f"{_when(status.activity, status.step)}, {location}"


def _when(activity: str, step: int) -> str:
    if activity == TRAINING:
        return f"during step {step}"
    return f"while {activity} after step {step}" if step else f"while {activity}"


def _stop(step: int, world_size: int) -> str:
    """Return the end of a message: its consequence, and what to do."""
    restart = "start it again with --resume auto" if step else "start it again"
    where = f" on all {world_size} ranks" if world_size > 1 else ""
    return f"the run stops{where}; {restart}"


def _names(statuses: Iterable[RankStatus]) -> str:
    """Return ``rank 3 on node-b (pid 1234)``, or ``ranks 0-7 on node-a, ranks 8-15 on node-b``."""
    names = []
    in_order = sorted(statuses, key=lambda status: status.rank)
    for host, group in groupby(in_order, lambda status: status.host):
        on_host = list(group)
        if len(on_host) == 1:
            names.append(f"rank {on_host[0].rank} on {host} (pid {on_host[0].pid})")
        else:
            names.append(f"ranks {numbers_in_short([status.rank for status in on_host])} on {host}")
    return ", ".join(names)
