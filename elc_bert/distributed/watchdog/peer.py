"""The other ranks' end of the heartbeats: it sends those of its rank, and does what rank 0 requests."""

import asyncio
import contextlib
from asyncio import StreamReader, StreamWriter
from typing import Any, NoReturn

from elc_bert.distributed.watchdog.diagnosis import (
    Diagnosis,
    RankStatus,
    Timeouts,
    diagnose,
    lost_ranks_message,
)
from elc_bert.distributed.watchdog.heartbeats import (
    MAX_LINE_BYTES,
    SHORT_TIMEOUT,
    CoordinatorAddress,
    HeartbeatThread,
    has_ended,
    parse_status,
    print_final_message,
    read_messages,
)


class Peer(HeartbeatThread):
    """Heartbeat thread of any other rank, which receives heartbeats and requests of rank 0.

    Args:
        status: Status of this rank, which the main thread keeps up to date.
        world_size: Number of ranks.
        timeouts: Timeouts of the watchdog; they may be replaced at any time.
        address: Address of rank 0.
        reports_loss: Print the message if rank 0 is lost.
    """

    def __init__(
        self,
        status: RankStatus,
        world_size: int,
        timeouts: Timeouts,
        address: CoordinatorAddress,
        reports_loss: bool,
    ) -> None:
        super().__init__(status, world_size, timeouts)
        self._address, self._reports_loss = address, reports_loss
        self._coordinator: RankStatus | None = None

    async def _run(self) -> None:
        reader, writer = await self._connect()
        self._writers[0] = writer
        receiving = asyncio.create_task(self._receive(reader))
        while not has_ended(self.status):
            await self._wait_for_interval()
            self._send()
            if self._coordinator is not None and self._coordinator.state != "ended":
                if receiving.done():
                    self._coordinator.state = "died"
                # Only rank 0 knows whether the run hangs.
                if diagnosis := diagnose([self._coordinator], self._now, Timeouts(self.timeouts.silence)):
                    await self._exit_without_coordinator(diagnosis)
        self._send()  # this rank may have ended after the last heartbeat
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.close()

    async def _connect(self) -> tuple[StreamReader, StreamWriter]:
        """Connect to rank 0, trying until it sends its first heartbeat."""
        while True:
            for host in self._address.hosts:
                with contextlib.suppress(OSError, TimeoutError):
                    connecting = asyncio.open_connection(host, self._address.port, limit=MAX_LINE_BYTES)
                    reader, writer = await asyncio.wait_for(connecting, 5 * SHORT_TIMEOUT)
                    writer.write(self._address.secret.encode())
                    writer.write(self._heartbeat())
                    async for message in read_messages(reader):
                        await self._handle(message)
                        return reader, writer
                    writer.close()
            await asyncio.sleep(SHORT_TIMEOUT)

    async def _receive(self, reader: StreamReader) -> None:
        """Receive heartbeats of rank 0, and do what it requests, until the connection ends."""
        async for message in read_messages(reader):
            await self._handle(message)
        self._wake_up.set()

    async def _handle(self, message: dict[str, Any]) -> None:
        self._coordinator = parse_status(message, self._now)
        self.connected.set()
        if "exit" in message:
            self._exit(message["exit"], [RankStatus(**status) for status in message["lost"]])
        if "locate" in message:
            await self._update_location()
            self._send()

    async def _exit_without_coordinator(self, diagnosis: Diagnosis) -> NoReturn:
        """End this rank after the loss of rank 0, as every other rank does by itself."""
        assert self._coordinator is not None
        if not self._reports_loss:
            # A launcher that sees one rank end may end the rank that is about to print the message.
            await asyncio.sleep(SHORT_TIMEOUT)
            self._exit(diagnosis.exit_status)
        message = lost_ranks_message(diagnosis, [self._coordinator], self.status.step, self.world_size)
        print_final_message(message)
        self._exit(diagnosis.exit_status, [self._coordinator])
