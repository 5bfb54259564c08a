"""Signs of life between rank 0 and all others, and what follows when they cease.

Everything runs in a thread beside the main thread, which may be stuck anywhere. Rank 0 listens, every other
rank connects once, and both send lines of JSON. Only who knows the secret, which rank 0 has made and passed
on through the process group, is listened to.
"""

import asyncio
import contextlib
import hmac
import json
import os
import signal
import socket
import sys
import threading
import time
from abc import ABC, abstractmethod
from asyncio import StreamReader, StreamWriter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from elc_bert.distributed.watchdog.diagnosis import Limits, Member, Verdict, decide, hang, loss
from elc_bert.distributed.watchdog.stack_traces import Whereabouts, whereabouts

#: Seconds for what should take none: an answer, a last line, a goodbye.
_PATIENCE = 2.0
#: Bytes of a line: the longest names all ranks that were lost.
_LONGEST = 2**22


@dataclass(frozen=True)
class Meeting:
    """Where rank 0 listens."""

    addresses: Sequence[str]
    """Any of them may be the one by which another host reaches it."""
    port: int
    secret: str


class Lifeline(ABC):
    """What both ends have in common.

    Args:
        me: this rank, which the main thread keeps up to date.
        limits: may be changed at any time.
        size: number of ranks.
    """

    def __init__(self, me: Member, size: int, limits: Limits):
        self.me, self.size, self.limits = me, size, limits
        self.marks = 0
        """Counts progress within a step."""
        self.ready = threading.Event()
        """All others, or rank 0, have been heard."""
        self._now = 0.0
        self._writers: dict[int, StreamWriter] = {}
        self._news = asyncio.Event()
        self._last: tuple[Any, ...] = ()
        self._since = 0.0
        # Data workers are forked from this process. They would keep its connections open when it dies.
        os.register_at_fork(after_in_child=self._close_in_child)

    def start(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._run()], daemon=True)
        self._thread.start()

    def change(self, state: str) -> None:
        """Let the others know at once that this rank has failed or ended."""
        self.me.state = state  # type: ignore[assignment]
        with contextlib.suppress(RuntimeError):  # the loop has ended already
            self._loop.call_soon_threadsafe(self._news.set)

    def join(self) -> None:
        """Wait until goodbyes have been exchanged, but not for ever."""
        self._thread.join(2 * _PATIENCE)

    @abstractmethod
    async def _run(self) -> None:
        """What the thread does until the end."""

    async def _tick(self) -> None:
        """Let an interval pass, or less if there is news; note whether the main thread has made progress."""
        start = time.monotonic()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), self.limits.interval)
        self._news.clear()
        # If this process was stopped for a while, that says nothing about the others.
        self._now += min(time.monotonic() - start, 2 * self.limits.interval)
        if self._last != (last := (self.me.step, self.me.doing, self.marks)):
            self._last, self._since = last, self._now
        self.me.idle, self.me.heard = self._now - self._since, self._now

    def _send(self, order: dict[str, Any] | None = None) -> None:
        """This rank's sign of life, to all that are connected; and what they have to do."""
        line = json.dumps({"member": asdict(self.me), **(order or {})}).encode() + b"\n"
        for writer in self._writers.values():
            writer.write(line)

    async def _locate(self) -> None:
        """See where the main thread is. The source may be on a file system that does not answer."""
        with contextlib.suppress(TimeoutError):
            self.me.whereabouts = await asyncio.wait_for(asyncio.to_thread(whereabouts), _PATIENCE)

    async def _until(self, condition) -> None:
        """Wait for it, but not long."""
        deadline = time.monotonic() + _PATIENCE
        while not condition() and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    def _end(self, status: int, lost: Sequence[Member] = ()) -> NoReturn:
        for member in lost:
            _kill_stopped(member, self.me.host)
        last_words("")
        os._exit(status)

    def _close_in_child(self) -> None:
        for writer in self._writers.values():
            with contextlib.suppress(OSError):
                os.close(writer.get_extra_info("socket").fileno())


class Leader(Lifeline):
    """Rank 0, which hears all others and decides."""

    def __init__(self, me: Member, size: int, limits: Limits):
        super().__init__(me, size, limits)
        self._members = {0: me}
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        self._listener = socket.create_server(("", 0), family=family, dualstack_ipv6=dual, backlog=size)
        addresses = [os.environ["MASTER_ADDR"], socket.gethostname()]
        self.meeting = Meeting(addresses, self._listener.getsockname()[1], os.urandom(32).hex())

    async def _run(self) -> None:
        await asyncio.start_server(self._serve, sock=self._listener, limit=_LONGEST)
        while self.me.state != "ended":
            await self._tick()
            self._send()
            if self.me.state != "ended" and (
                verdict := decide(self._members.values(), self._now, self.limits)
            ):
                await self._pronounce(verdict)
        await self._until(lambda: not self._writers)

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        try:
            hello = json.loads(await asyncio.wait_for(reader.readline(), self.limits.silence))
            known = hmac.compare_digest(hello["secret"], self.meeting.secret)
        except (OSError, TimeoutError, ValueError, LookupError, TypeError):
            known = False
        if not known:
            writer.close()
            return
        member = _member(hello, self._now)
        rank = member.rank
        self._members[rank], self._writers[rank] = member, writer
        self._send()
        if len(self._members) == self.size:
            self.ready.set()
        async for sign in _signs(reader):
            self._members[rank] = _member(sign, self._now)
            if self._members[rank].state != "running":
                self._news.set()
        del self._writers[rank]
        writer.close()
        if self._members[rank].state == "running":
            self._members[rank].state = "died"
            self._news.set()

    async def _pronounce(self, verdict: Verdict) -> NoReturn:
        """Say what has happened, and end all ranks."""
        members = self._members.values()
        if verdict.kind == "hangs":
            self._send({"locate": True})
            await self._locate()
            await self._until(lambda: all(member.whereabouts for member in self._members.values()))
            last_words(hang(members))
        elif verdict.kind == "lost":
            last_words(loss(verdict, members, self.me.step, self.size))
        lost = [self._members[rank] for rank in verdict.culprits if verdict.kind == "lost"]
        self._send({"end": verdict.status, "lost": [asdict(member) for member in lost]})
        # Who exits with unread lines may take those away that it has sent.
        await self._until(lambda: not set(self._writers) - set(verdict.culprits))
        self._end(verdict.status, lost)

    def _close_in_child(self) -> None:
        super()._close_in_child()
        self._listener.close()


class Follower(Lifeline):
    """Any other rank, which hears rank 0 and obeys."""

    def __init__(self, me: Member, size: int, limits: Limits, meeting: Meeting, speaks: bool):
        super().__init__(me, size, limits)
        self._meeting, self._speaks = meeting, speaks
        self._leader: Member | None = None

    async def _run(self) -> None:
        reader, writer = await self._reach()
        self._writers[0] = writer
        self._send({"secret": self._meeting.secret})
        listening = asyncio.create_task(self._listen(reader))
        while self.me.state != "ended":
            await self._tick()
            self._send()
            if self._leader is not None and self._leader.state != "ended":
                if listening.done():
                    self._leader.state = "died"
                if verdict := decide([self._leader], self._now, Limits(self.limits.silence)):
                    await self._lament(verdict)
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.close()

    async def _reach(self) -> tuple[StreamReader, StreamWriter]:
        for address in self._meeting.addresses:
            with contextlib.suppress(OSError, TimeoutError):
                connecting = asyncio.open_connection(address, self._meeting.port, limit=_LONGEST)
                return await asyncio.wait_for(connecting, 5 * _PATIENCE)
        await asyncio.Future()  # ``ready`` stays unset
        raise AssertionError

    async def _listen(self, reader: StreamReader) -> None:
        async for order in _signs(reader):
            self._leader = _member(order, self._now)
            self.ready.set()
            if "end" in order:
                self._end(order["end"], [Member(**each) for each in order["lost"]])
            if "locate" in order:
                await self._locate()
                self._send()
        self._news.set()

    async def _lament(self, verdict: Verdict) -> NoReturn:
        """Rank 0 is lost: nobody can be told, and everybody ends alone."""
        assert self._leader is not None
        if not self._speaks:
            await asyncio.sleep(_PATIENCE)  # a launcher that sees one rank end may end the one that speaks
            self._end(verdict.status)
        last_words(loss(verdict, [self._leader], self.me.step, self.size))
        self._end(verdict.status, [self._leader])


def last_words(text: str) -> None:
    """Flush what has been printed, and print the last message of this process, if there is one.

    In a thread of its own: the main thread may hold the lock of a stream that nobody reads.
    """

    def speak() -> None:
        sys.stdout.flush()
        if text:
            print(f"\n{text}", file=sys.stderr)  # a progress bar leaves its line open
        sys.stderr.flush()

    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()
    speaker.join(_PATIENCE)


async def _signs(reader: StreamReader):
    """All lines until the connection ends, however it does."""
    with contextlib.suppress(OSError, ValueError):
        while line := await reader.readline():
            yield json.loads(line)


def _member(sign: dict[str, Any], now: float) -> Member:
    member = Member(**sign["member"])
    member.heard = now
    if member.whereabouts is not None:
        member.whereabouts = Whereabouts(**sign["member"]["whereabouts"])
    return member


def _kill_stopped(member: Member, host: str) -> None:
    """Kill a rank that cannot end by itself, for which the launcher of this host would wait half a minute."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        # Names of hosts need not be unique; a process of the same parent is a rank of this run.
        if member.host == host and psutil.Process(member.pid).ppid() == os.getppid():
            os.kill(member.pid, signal.SIGKILL)
