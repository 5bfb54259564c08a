"""The place of a process among the tasks of Slurm's ``srun``, which is a launcher too."""

import os
import re


def srun_tasks() -> int:
    """Tasks of the ``srun`` that this process is a task of; 0 if ``srun`` did not start it.

    The shell of a batch script has a SLURM_PROCID and the job's SLURM_NTASKS without being a task of
    anything; only a step has SLURM_STEP_NUM_TASKS. ``mpirun`` starts its daemons by ``srun``, one a host, and
    its processes inherit the daemons' place.
    """
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "0")
    by_mpirun = "OMPI_COMM_WORLD_RANK" in os.environ or os.environ.get("PMI_SIZE", tasks) != tasks
    return 0 if by_mpirun else int(tasks)


def environment_from_srun() -> dict[str, str]:
    """What torch wants to find in the environment, from what ``srun`` put there."""
    names = ("PROCID", "LOCALID", "NODEID", "JOB_ID", "STEP_ID", "STEP_NODELIST", "STEP_TASKS_PER_NODE")
    task = {name: os.environ[f"SLURM_{name}"] for name in names}
    tasks_of_hosts = expand_counts(task["STEP_TASKS_PER_NODE"])
    one_machine = len(tasks_of_hosts) == 1
    # All tasks must come to the same port, and two steps that share a machine to different ones. Below
    # the ports that Linux gives to outgoing connections.
    port = 10_000 + (31 * int(task["JOB_ID"]) + int(task["STEP_ID"])) % 20_000
    meeting = {
        "MASTER_ADDR": "127.0.0.1" if one_machine else first_host(task["STEP_NODELIST"]),
        "MASTER_PORT": str(port),
    }
    return {
        "RANK": task["PROCID"],
        "LOCAL_RANK": task["LOCALID"],
        "LOCAL_WORLD_SIZE": str(tasks_of_hosts[int(task["NODEID"])]),
        "WORLD_SIZE": str(srun_tasks()),
        **{name: os.environ.get(name, value) for name, value in meeting.items()},
    }


def expand_counts(counts: str) -> list[int]:
    """Slurm's short form of one number per host: ``2(x3),1`` is 2, 2, 2, 1."""
    pairs = re.findall(r"(\d+)(?:\(x(\d+)\))?", counts)
    return [int(count) for count, times in pairs for _ in range(int(times or 1))]


def first_host(hosts: str) -> str:
    """First of Slurm's short form of a list of hosts: of ``gpu[07-09,12],cpu1`` it is ``gpu07``.

    ``scontrol show hostnames`` knows it as well, but containers have no ``scontrol``.
    """
    first = re.match(r"(?:[^,\[]|\[[^]]*\])*", hosts)
    assert first is not None, "it matches nothing, too"
    return re.sub(r"\[(\w+)[^]]*\]", r"\1", first[0])
