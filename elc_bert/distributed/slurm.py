"""Environment that Slurm's ``srun`` gives to the tasks that it starts."""

import os
import re


def srun_tasks() -> int:
    """Return the number of tasks of the ``srun`` that started this process, or 0 if none did.

    The shell of a batch script has SLURM_PROCID and the job's SLURM_NTASKS without being a task; only a job
    step has SLURM_STEP_NUM_TASKS. ``mpirun`` uses ``srun`` to start one daemon per host, and its processes
    inherit the daemons' variables.
    """
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "0")
    by_mpirun = "OMPI_COMM_WORLD_RANK" in os.environ or os.environ.get("PMI_SIZE", tasks) != tasks
    return 0 if by_mpirun else int(tasks)


def environment_from_srun() -> dict[str, str]:
    """Return the variables that torch reads, from those that ``srun`` sets."""
    names = ("PROCID", "LOCALID", "NODEID", "JOB_ID", "STEP_ID", "STEP_NODELIST", "STEP_TASKS_PER_NODE")
    task = {name: os.environ[f"SLURM_{name}"] for name in names}
    tasks_per_host = expand_counts(task["STEP_TASKS_PER_NODE"])
    one_host = len(tasks_per_host) == 1
    # All tasks of a step must choose the same port, and two steps on the same host different ones. The range
    # is below that from which Linux takes the ports of outgoing connections.
    port = 10_000 + (31 * int(task["JOB_ID"]) + int(task["STEP_ID"])) % 20_000
    master = {
        "MASTER_ADDR": "127.0.0.1" if one_host else first_host(task["STEP_NODELIST"]),
        "MASTER_PORT": str(port),
    }
    return {
        "RANK": task["PROCID"],
        "LOCAL_RANK": task["LOCALID"],
        "LOCAL_WORLD_SIZE": str(tasks_per_host[int(task["NODEID"])]),
        "WORLD_SIZE": str(srun_tasks()),
        **{name: os.environ.get(name, value) for name, value in master.items()},
    }


def expand_counts(counts: str) -> list[int]:
    """Expand Slurm's short form of one number per host: ``2(x3),1`` becomes 2, 2, 2, 1."""
    pairs = re.findall(r"(\d+)(?:\(x(\d+)\))?", counts)
    return [int(count) for count, times in pairs for _ in range(int(times or 1))]


def first_host(hosts: str) -> str:
    """Return the first host of Slurm's short form of a list: ``gpu07`` for ``gpu[07-09,12],cpu1``.

    ``scontrol show hostnames`` expands such lists as well, but containers have no ``scontrol``.
    """
    first = re.match(r"(?:[^,\[]|\[[^]]*\])*", hosts)
    assert first is not None, "the pattern matches an empty string too"
    return re.sub(r"\[(\w+)[^]]*\]", r"\1", first[0])
