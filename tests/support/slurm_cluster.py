"""Temporary Slurm cluster for tests: two nodes, both on this machine."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from elc_bert.utils.machine import free_port

_PATH = f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin"
"""Search path for Slurm's daemons, which Debian installs in a folder that only root has in its PATH."""
_CONFIG = """
ClusterName=tiny
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/none
AuthInfo=cred_expire=5
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=127.0.0.1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 Gres=gpu:2 State=UNKNOWN
NodeName=127.0.0.2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 Gres=gpu:2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
"""Template of ``slurm.conf``.

A requeued job starts when its credentials have expired; ``cred_expire`` reduces that time from two minutes to
5 seconds, the minimum.
"""


class NoSlurmError(Exception):
    """Slurm is not installed, or cannot run on this machine."""


@dataclass(frozen=True)
class Cluster:
    """Running Slurm cluster."""

    config: Path
    """Path of ``slurm.conf``."""

    def __call__(self, *command: str, **options) -> str:
        """Run a command such as ``squeue`` and return its output.

        Args:
            command: Command and arguments.
            options: Further arguments of ``subprocess.run``.
        """
        environment = options.pop("env", dict(os.environ)) | {"SLURM_CONF": str(self.config), "PATH": _PATH}
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=30, check=True, **options
        )
        return result.stdout.strip()

    def state(self, job: str) -> str:
        """Return the state of a job, such as ``RUNNING``."""
        fields = self("scontrol", "show", "job", job).split()
        return next(field.removeprefix("JobState=") for field in fields if field.startswith("JobState="))


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Run a Slurm cluster within a ``with`` block.

    Its nodes are 127.0.0.1 and 127.0.0.2. Slurm believes that each has two GPUs.

    Args:
        folder: Folder of Slurm's files.

    Raises:
        NoSlurmError: Slurm is not installed, or cannot run on this machine.
    """
    if shutil.which("slurmctld", path=_PATH) is None or shutil.which("slurmd", path=_PATH) is None:
        raise NoSlurmError("Slurm is not installed (Debian: slurm-wlm)")
    if os.getuid() != 0:
        raise NoSlurmError("slurmd needs root")
    config = folder / "slurm.conf"
    ports = [free_port() for _ in range(3)]
    config.write_text(_CONFIG.format(host=socket.gethostname(), folder=folder, ports=ports))
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
    (folder / "state").mkdir()
    commands = [["slurmctld", "-D"], ["slurmd", "-D", "-N", "127.0.0.1"], ["slurmd", "-D", "-N", "127.0.0.2"]]
    daemons = [_start([*command, "-f", str(config)], folder) for command in commands]
    try:
        slurm = Cluster(config)
        _wait_for_nodes(slurm, folder)
        yield slurm
    finally:
        for daemon in reversed(daemons):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(daemon.pid, signal.SIGTERM)
        for daemon in daemons:
            daemon.wait(timeout=20)


def _start(command: list[str], folder: Path) -> subprocess.Popen:
    with open(folder / "daemons.log", "a") as log:
        return subprocess.Popen(
            command, env=dict(os.environ) | {"PATH": _PATH}, stdout=log, stderr=log, start_new_session=True
        )


def _wait_for_nodes(slurm: Cluster, folder: Path) -> None:
    for _ in range(100):
        with contextlib.suppress(subprocess.SubprocessError):
            if slurm("sinfo", "--noheader", "--Node", "--format=%T").split() == ["idle", "idle"]:
                return
        time.sleep(0.1)
    raise NoSlurmError(f"Slurm did not start: {(folder / 'daemons.log').read_text()[-500:]}")
