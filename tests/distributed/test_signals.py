"""Data workers ignore signals and the death of their rank.

Signals to the ranks themselves are tested in ``tests/training/test_preemption.py``.
"""

import multiprocessing
import os
import socket
from multiprocessing.connection import Connection
from multiprocessing.resource_sharer import DupFd

import pytest

from elc_bert.distributed.signals import SIGNALS, ignore_signals_in_data_worker


def offer_batch(rank: Connection, ignore_signals: bool) -> None:
    """Offer a file descriptor, as a worker does to hand over a batch, until the rank sends a message."""
    if ignore_signals:
        ignore_signals_in_data_worker()
        for number in SIGNALS:
            os.kill(os.getpid(), number)
    address, _ = DupFd(0)._id
    rank.send(address)
    rank.recv()


@pytest.mark.parametrize("ignore_signals", [True, False])
def test_a_worker_prints_no_traceback_when_its_rank_dies_while_taking_a_batch(ignore_signals, capfd):
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    worker = context.Process(target=offer_batch, args=(theirs, ignore_signals))
    worker.start()
    address = ours.recv()
    for _ in range(2):  # the second one is answered after the first has failed
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(address)
            assert connection.recv(1)
    ours.send("end")
    worker.join()
    assert worker.exitcode == 0
    assert ("Traceback" in capfd.readouterr().err) == (not ignore_signals)
