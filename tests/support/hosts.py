"""Several simulated hosts on this machine, in Linux namespaces.

Each has its own name, address, processes and ssh server.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

from tests.support.launching import PRETRAIN, REPOSITORY, spawn

_TOOLS = ("ip", "nsenter", "pdsh", "setpriv", "ssh", "ssh-keygen", "sshd", "unshare")
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
"""Search path for the tools, with the folders of system tools, which a user's PATH often lacks."""
_UNSHARE = ["setpriv", "--pdeathsig", "KILL", "unshare"]
"""Start of a command in new namespaces. It dies with this process, and all processes of its host with it."""
_NAMESPACES = ["--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]

# All hosts mount the same folder as /etc/ssh. Its one key authenticates the hosts and the user.
_SSHD_CONFIG = """
HostKey /etc/ssh/key
AuthorizedKeysFile /etc/ssh/key.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
StrictModes no
UsePAM no
PidFile none
"""
_SSH_CONFIG = """
User root
IdentityFile /etc/ssh/key
IdentitiesOnly yes
StrictHostKeyChecking no
UserKnownHostsFile /dev/null
LogLevel ERROR
"""
# First process of a host. /dev/shm and /run are private to it; all other folders are shared by all hosts.
_BOOT = """
hostname "$1"
mount --bind "$2/ssh" /etc/ssh
mount --bind "$2/hosts-$1" /etc/hosts
if [ -d ~/.ssh ]; then mount -t tmpfs none ~/.ssh; fi
mount -t tmpfs none /dev/shm
mount -t tmpfs none /run
mkdir /run/sshd
ip link set lo up
echo ready
exec "$(command -v sshd)" -D -E "$2/sshd-$1.log"
"""


def unavailable() -> str | None:
    """Return the reason why this machine cannot simulate several hosts, or None if it can."""
    missing = [tool for tool in _TOOLS if shutil.which(tool, path=_PATH) is None]
    if missing:
        return f"several hosts need {', '.join(missing)}"
    if os.geteuid() != 0:
        return "several hosts need root, to create network namespaces"
    probe = [*_UNSHARE, *_NAMESPACES, "sh", "-c", "mount -t tmpfs none /run && ip link add type veth"]
    result = subprocess.run(probe, env=_environment(), capture_output=True, text=True)
    if result.returncode != 0:
        return f"several hosts need namespaces: {result.stderr.strip()}"
    return None


class Hosts:
    """Hosts ``node1``, ``node2`` and so on, with the addresses 10.77.0.1, 10.77.0.2 and so on.

    They are invisible outside of their namespaces, so that any number of instances can exist at the same
    time. A host resolves its own name to 127.0.1.1, as on Debian, and has no default route, as on many
    clusters.

    Args:
        folder: Folder of configuration files and logs.
        init_pids: Process id of each host's first process, in the namespace of this process.
        switch_pid: Process id of the process that holds the network switch.
    """

    def __init__(self, folder: Path, init_pids: dict[str, int], switch_pid: int):
        self.folder = folder
        self._init_pids = init_pids
        self._switch_pid = switch_pid

    @property
    def names(self) -> list[str]:
        return list(self._init_pids)

    def start(self, name: str, command: Sequence[Any], directory: Path = REPOSITORY) -> subprocess.Popen:
        """Start a command on a host, see ``launching.spawn``."""
        enter = ["nsenter", "--target", self._init_pids[name], "--all", "env", f"--chdir={directory}"]
        return spawn([*enter, *command])

    def launch(
        self,
        launcher: str,
        ranks: int,
        arguments: Sequence[Any],
        directory: Path = REPOSITORY,
        script: Path = PRETRAIN,
    ) -> list[subprocess.Popen]:
        """Start a script on all hosts.

        Args:
            launcher: ``pdsh`` or ``openmpi`` (DeepSpeed's), started on the first host, or ``no_ssh``
                (DeepSpeed's) or ``torchrun``, started on every host.
            ranks: Number of ranks per host.
            arguments: Arguments of the script.
            directory: Working directory.
            script: Script to run.

        Returns:
            The processes of the launchers.
        """
        scripts = Path(sys.executable).parent
        if launcher == "torchrun":
            nodes = ["--nnodes", len(self.names), "--nproc-per-node", ranks]
            rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{self.names[0]}:29500"]
            command = [scripts / "torchrun", *nodes, *rendezvous, script, *arguments]
            return [self.start(name, command, directory) for name in self.names]
        hostfile = self.folder / "hostfile"
        hostfile.write_text("".join(f"{name} slots={ranks}\n" for name in self.names), encoding="ascii")
        command = [scripts / "deepspeed", "--hostfile", hostfile]
        if launcher == "no_ssh":
            command += ["--no_ssh", "--master_addr", self.names[0]]
            return [
                self.start(name, [*command, "--node_rank", rank, script, *arguments], directory)
                for rank, name in enumerate(self.names)
            ]
        return [self.start(self.names[0], [*command, "--launcher", launcher, script, *arguments], directory)]

    @contextmanager
    def disconnected(self, name: str) -> Iterator[None]:
        """Unplug a host within a ``with`` block: packets are lost, and no connection is closed."""
        _ip(self._switch_pid, f"link set {name} down")
        try:
            yield
        finally:
            _ip(self._switch_pid, f"link set {name} up")


@contextmanager
def several_hosts(number: int, folder: Path) -> Iterator[Hosts]:
    """Simulate hosts within a ``with`` block. All their processes are killed at its end.

    Args:
        number: Number of hosts.
        folder: Folder of configuration files and logs.
    """
    addresses = {f"node{n}": f"10.77.0.{n}" for n in range(1, number + 1)}
    _write_configurations(folder, addresses)
    with ExitStack() as stack:
        boot = "ip link add switch type bridge && ip link set switch up && echo ready && exec sleep infinity"
        switch_pid = _start_in_namespaces(stack, ["--net", "sh", "-c", boot])
        init_pids = {}
        for name, address in addresses.items():
            boot_host = [*_NAMESPACES, "sh", "-ec", _BOOT, "boot", name, str(folder)]
            (init,) = psutil.Process(_start_in_namespaces(stack, boot_host)).children()
            init_pids[name] = init.pid
            _ip(
                switch_pid,
                f"link add {name} type veth peer name eth0 netns {init.pid}",
                f"link set {name} master switch up",
            )
            _ip(init.pid, f"address add {address}/24 dev eth0", "link set eth0 up")
        yield Hosts(folder, init_pids, switch_pid)


def _write_configurations(folder: Path, addresses: dict[str, str]) -> None:
    (folder / "ssh").mkdir(parents=True)
    (folder / "ssh" / "sshd_config").write_text(_SSHD_CONFIG, encoding="ascii")
    (folder / "ssh" / "ssh_config").write_text(_SSH_CONFIG, encoding="ascii")
    key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "ssh" / "key")]
    subprocess.run(key, check=True)
    for host in addresses:
        lines = ["127.0.0.1 localhost", f"127.0.1.1 {host}"]
        lines += [f"{address} {name}" for name, address in addresses.items() if name != host]
        (folder / f"hosts-{host}").write_text("\n".join([*lines, ""]), encoding="ascii")


def _start_in_namespaces(stack: ExitStack, arguments: list[str]) -> int:
    """Start a process in new namespaces, which exist until the stack unwinds.

    Args:
        stack: Stack that kills the process.
        arguments: Namespaces, as options of ``unshare``, and the command, which prints ``ready``.

    Returns:
        Process id of the started process.
    """
    holder = subprocess.Popen([*_UNSHARE, *arguments], env=_environment(), stdout=subprocess.PIPE, text=True)
    stack.callback(holder.wait)
    stack.callback(holder.kill)
    assert holder.stdout is not None
    stack.callback(holder.stdout.close)
    if holder.stdout.readline() != "ready\n":
        raise RuntimeError(f"namespaces could not be created: {arguments}")
    return holder.pid


def _ip(pid: int, *commands: str) -> None:
    """Run commands of ``ip`` in the network namespace of a process."""
    enter = ["nsenter", "--target", str(pid), "--net", "ip", "-batch", "-"]
    subprocess.run(enter, env=_environment(), input="\n".join(commands), text=True, check=True)


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": _PATH}
