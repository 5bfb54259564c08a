"""What data workers leave to their rank; signals to the ranks themselves are tested in test_preemption.py."""

import multiprocessing
import os
import socket
from multiprocessing.connection import Connection
from multiprocessing.resource_sharer import DupFd

import pytest

from elc_bert.distributed.signals import SIGNALS, ignore_signals_in_data_worker


def hand_over(rank: Connection, leave_it: bool) -> None:
    """Offer a file, as a worker does that has prepared a batch, until the rank says that it is enough."""
    if leave_it:
        ignore_signals_in_data_worker()
        for number in SIGNALS:
            os.kill(os.getpid(), number)
    address, _ = DupFd(0)._id
    rank.send(address)
    rank.recv()


@pytest.mark.parametrize("leave_it", [True, False])
def test_a_worker_is_silent_when_its_rank_dies_while_it_is_handed_a_batch(leave_it, capfd):
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    worker = context.Process(target=hand_over, args=(theirs, leave_it))
    worker.start()
    address = ours.recv()
    for _ in range(2):  # the second one is answered when the first has been dealt with
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(address)
            assert connection.recv(1)
    ours.send("enough")
    worker.join()
    assert worker.exitcode == 0
    assert ("Traceback" in capfd.readouterr().err) == (not leave_it)
