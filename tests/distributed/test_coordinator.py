"""Connections to rank 0's end of the heartbeats, by ranks and by others."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from elc_bert.distributed.watchdog import coordinator as module
from elc_bert.distributed.watchdog.coordinator import SPARE_CONNECTIONS, Coordinator
from elc_bert.distributed.watchdog.diagnosis import RankStatus, Timeouts
from elc_bert.distributed.watchdog.heartbeats import CoordinatorAddress
from elc_bert.distributed.watchdog.peer import Peer
from tests.support.launching import poll

CONNECT = """
import socket, sys, time
port, count, first = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3].encode()
connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
for connection in connections:
    try:
        connection.sendall(first)
    except OSError:
        pass
print("connected", flush=True)
time.sleep(60)
"""
"""Program that opens connections without the secret, and keeps them open."""


@pytest.fixture
def coordinator() -> Iterator[Coordinator]:
    """Rank 0 of two ranks on one host."""
    status = RankStatus(0, "here", os.getpid())
    coordinator = Coordinator(status, 2, Timeouts(silence=60.0), several_hosts=False)
    coordinator.start()
    yield coordinator
    coordinator.report("ended")
    coordinator.join()


@contextlib.contextmanager
def strangers(coordinator: Coordinator, count: int, first: str) -> Iterator[None]:
    program = [sys.executable, "-c", CONNECT, str(coordinator.address.port), str(count), first]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "connected\n"
            yield
        finally:
            process.kill()


def peer_of(coordinator: Coordinator, secret: str | None = None) -> Peer:
    address = coordinator.address
    if secret is not None:
        address = CoordinatorAddress(address.hosts, address.port, secret)
    peer = Peer(RankStatus(1, "here", os.getpid()), 2, Timeouts(silence=60.0), address, True)
    peer.start()
    return peer


def end(peer: Peer) -> None:
    peer.report("ended")
    peer.join()


def test_a_run_on_one_host_listens_on_loopback_only(coordinator):
    listening = [
        connection.laddr
        for connection in psutil.Process().net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == coordinator.address.port
    ]
    assert [address.ip for address in listening] == ["127.0.0.1"]
    assert coordinator.address.hosts == ["127.0.0.1"]


def test_a_run_on_several_hosts_listens_on_all_interfaces(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "node-a")
    several = Coordinator(RankStatus(0, "node-a", os.getpid()), 4, Timeouts(), several_hosts=True)
    assert several._listener.getsockname()[0] in ("::", "0.0.0.0")
    assert several.address.hosts == ["node-a", socket.gethostname()]
    several._listener.close()


@pytest.mark.parametrize(
    "first",
    ["", "x", "[" * 100_000 + "\n", '{"secret": "0"}\n', "0" * 64, "\n" * 64],
    ids=["nothing", "part", "nested JSON", "JSON", "another secret", "line ends"],
)
def test_ranks_connect_in_spite_of_a_thousand_other_connections(coordinator, first, capfd, monkeypatch):
    monkeypatch.setattr(module, "AUTHENTICATION_TIMEOUT", 600.0)  # the ranks must not have to wait for it
    before = psutil.Process().num_fds()
    with strangers(coordinator, 1000 if len(first) < 100 else 20, first):
        peer = peer_of(coordinator)
        assert peer.connected.wait(20)
        assert coordinator.connected.wait(20)
        assert psutil.Process().num_fds() <= before + 2 + SPARE_CONNECTIONS + 10
        end(peer)
    assert capfd.readouterr().err == ""


def test_a_connection_without_the_secret_is_closed_in_time(coordinator, monkeypatch):
    assert module.AUTHENTICATION_TIMEOUT <= 10
    monkeypatch.setattr(module, "AUTHENTICATION_TIMEOUT", 0.5)
    with socket.create_connection(("127.0.0.1", coordinator.address.port)) as slow:
        slow.settimeout(10)
        start = time.monotonic()
        slow.sendall(b"0")
        time.sleep(0.3)
        slow.sendall(b"0")  # sending slowly does not extend the time
        assert slow.recv(1) == b""
        assert 0.4 < time.monotonic() - start < 5
    assert not coordinator.connected.is_set()


def test_a_rank_with_another_secret_is_not_connected(coordinator):
    peer = peer_of(coordinator, secret="0" * 64)
    assert not peer.connected.wait(1)
    assert not coordinator.connected.is_set()
    peer.status.state = "ended"


def test_a_rank_whose_connection_is_dropped_before_it_is_accepted_tries_again(coordinator, monkeypatch):
    drops = iter([True, False])
    accepts = coordinator._is_authenticated

    async def drop_once(connection: socket.socket) -> bool:
        return not next(drops) and await accepts(connection)

    monkeypatch.setattr(coordinator, "_is_authenticated", drop_once)
    peer = peer_of(coordinator)
    assert peer.connected.wait(20)
    end(peer)


def test_a_rank_that_exits_cleanly_is_no_loss(coordinator):
    peer = peer_of(coordinator)
    assert coordinator.connected.wait(20)
    end(peer)
    for _ in poll(timeout=20):
        if not coordinator._writers:
            break
    assert coordinator._statuses[1].state == "ended"
