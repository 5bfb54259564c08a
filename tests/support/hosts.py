"""Several hosts on one machine, each with a name, an address, processes and an ssh server of its own."""

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
#: Found by path: a user's PATH often lacks the folders of the system's tools.
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
#: What holds a host's namespaces dies with this process, and every process of the host with it.
_HELD = ["setpriv", "--pdeathsig", "KILL", "unshare"]
_NAMESPACES = ["--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]

# One folder is /etc/ssh on all hosts. Its key proves the host to the user and the user to the host.
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
# The first process of a host. /dev/shm and /run are its own; files elsewhere are shared by all hosts.
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
    """Why this machine cannot play several hosts, if it cannot."""
    missing = [tool for tool in _TOOLS if shutil.which(tool, path=_PATH) is None]
    if missing:
        return f"several hosts need {', '.join(missing)}"
    if os.geteuid() != 0:
        return "several hosts need root, to make network namespaces"
    probe = [*_HELD, *_NAMESPACES, "sh", "-c", "mount -t tmpfs none /run && ip link add type veth"]
    result = subprocess.run(probe, env=_environment(), capture_output=True, text=True)
    if result.returncode != 0:
        return f"several hosts need namespaces: {result.stderr.strip()}"
    return None


class Hosts:
    """``node1``, ``node2`` and so on, at 10.77.0.1, 10.77.0.2 and so on.

    Nothing of it can be seen from outside, so that any number of these can exist at once. As on Debian a
    host takes its own name for 127.0.1.1, and as on many clusters no route leads out.
    """

    def __init__(self, folder: Path, init: dict[str, int], switch: int):
        self.folder = folder
        self._init = init
        """Process id, as seen from outside, of each host's first process."""
        self._switch = switch

    @property
    def names(self) -> list[str]:
        return list(self._init)

    def start(self, name: str, command: Sequence[Any], directory: Path = REPOSITORY) -> subprocess.Popen:
        """Start a command on a host, see ``launching.spawn``."""
        inside = ["nsenter", "--target", self._init[name], "--all", "env", f"--chdir={directory}"]
        return spawn([*inside, *command])

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
            launcher: ``pdsh`` or ``openmpi``, which reach the other hosts from the first one, or ``no_ssh``
                (DeepSpeed's) or ``torchrun``, of which every host starts its own.
            ranks: on each host.
            directory: where it is started.
        """
        beside = Path(sys.executable).parent
        if launcher == "torchrun":
            meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{self.names[0]}:29500"]
            nodes = ["--nnodes", len(self.names), "--nproc-per-node", ranks]
            command = [beside / "torchrun", *nodes, *meeting, script, *arguments]
            return [self.start(name, command, directory) for name in self.names]
        hostfile = self.folder / "hostfile"
        hostfile.write_text("".join(f"{name} slots={ranks}\n" for name in self.names), encoding="ascii")
        command = [beside / "deepspeed", "--hostfile", hostfile]
        if launcher == "no_ssh":
            command += ["--no_ssh", "--master_addr", self.names[0]]
            return [
                self.start(name, [*command, "--node_rank", rank, script, *arguments], directory)
                for rank, name in enumerate(self.names)
            ]
        return [self.start(self.names[0], [*command, "--launcher", launcher, script, *arguments], directory)]

    @contextmanager
    def cut(self, name: str) -> Iterator[None]:
        """Pull a host's network cable: nobody is told, but packets are lost until the ``with`` block ends."""
        _ip(self._switch, f"link set {name} down")
        try:
            yield
        finally:
            _ip(self._switch, f"link set {name} up")


@contextmanager
def several_hosts(number: int, folder: Path) -> Iterator[Hosts]:
    """Hosts that exist within the ``with`` block; at its end all their processes are killed.

    Args:
        folder: where their configurations and logs of ssh lie.
    """
    addresses = {f"node{n}": f"10.77.0.{n}" for n in range(1, number + 1)}
    _write_configurations(folder, addresses)
    with ExitStack() as stack:
        boot = "ip link add switch type bridge && ip link set switch up && echo ready && exec sleep infinity"
        switch = _hold(stack, ["--net", "sh", "-c", boot])
        init = {}
        for name, address in addresses.items():
            holder = _hold(stack, [*_NAMESPACES, "sh", "-ec", _BOOT, "boot", name, str(folder)])
            (child,) = psutil.Process(holder).children()
            init[name] = child.pid
            _ip(
                switch,
                f"link add {name} type veth peer name eth0 netns {child.pid}",
                f"link set {name} master switch up",
            )
            _ip(child.pid, f"address add {address}/24 dev eth0", "link set eth0 up")
        yield Hosts(folder, init, switch)


def _write_configurations(folder: Path, addresses: dict[str, str]) -> None:
    (folder / "ssh").mkdir(parents=True)
    (folder / "ssh" / "sshd_config").write_text(_SSHD_CONFIG, encoding="ascii")
    (folder / "ssh" / "ssh_config").write_text(_SSH_CONFIG, encoding="ascii")
    key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "ssh" / "key")]
    subprocess.run(key, check=True)
    for here in addresses:
        lines = ["127.0.0.1 localhost", f"127.0.1.1 {here}"]
        lines += [f"{address} {name}" for name, address in addresses.items() if name != here]
        (folder / f"hosts-{here}").write_text("\n".join([*lines, ""]), encoding="ascii")


def _hold(stack: ExitStack, arguments: list[str]) -> int:
    """Have a process make namespaces and keep them until the stack unwinds; its id once it is ready."""
    holder = subprocess.Popen([*_HELD, *arguments], env=_environment(), stdout=subprocess.PIPE, text=True)
    stack.callback(holder.wait)
    stack.callback(holder.kill)
    assert holder.stdout is not None
    stack.callback(holder.stdout.close)
    if holder.stdout.readline() != "ready\n":
        raise RuntimeError(f"namespaces could not be made: {arguments}")
    return holder.pid


def _ip(process: int, *commands: str) -> None:
    """Run commands of ``ip`` in the network namespace of a process."""
    inside = ["nsenter", "--target", str(process), "--net", "ip", "-batch", "-"]
    subprocess.run(inside, env=_environment(), input="\n".join(commands), text=True, check=True)


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": _PATH}
