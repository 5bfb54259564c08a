"""Environment of a task that srun starts."""

import pytest

from elc_bert.distributed.slurm import environment_from_srun, expand_counts, first_host, srun_tasks

TASK = {
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "gpu[07,09]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}
"""Variables that Slurm 22.05 sets for the second task on the second of two nodes."""
BATCH_SHELL = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "4711"}


@pytest.fixture
def environment(monkeypatch):
    """Return a function that sets variables, in an environment without Slurm's."""
    for name in ("OMPI_COMM_WORLD_RANK", "PMI_SIZE", "MASTER_ADDR", "MASTER_PORT", *TASK):
        monkeypatch.delenv(name, raising=False)
    return lambda variables: [monkeypatch.setenv(*item) for item in variables.items()]


def test_variables_of_a_task(environment):
    environment(TASK)
    assert srun_tasks() == 4
    variables = environment_from_srun()
    assert 10_000 <= int(variables.pop("MASTER_PORT")) < 30_000
    assert variables == {
        "RANK": "3",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "WORLD_SIZE": "4",
        "MASTER_ADDR": "gpu07",
    }


@pytest.mark.parametrize(
    ("case", "variables", "tasks"),
    [
        ("no Slurm", {}, 0),
        ("the shell of a batch script", BATCH_SHELL, 0),
        ("srun --mpi=pmi2", TASK | {"PMI_SIZE": "4", "PMI_RANK": "3"}, 4),
        ("MPICH's mpirun -n 16, by 4 daemons", TASK | {"PMI_SIZE": "16", "PMI_RANK": "11"}, 0),
        ("Open MPI's mpirun", TASK | {"OMPI_COMM_WORLD_RANK": "11", "PMIX_RANK": "11"}, 0),
        ("an interactive shell", TASK | {"SLURM_STEP_NUM_TASKS": "1"}, 1),
    ],
)
def test_only_tasks_are_recognized(environment, case, variables, tasks):
    environment(variables)
    assert srun_tasks() == tasks, case


def test_master_address_and_port_can_be_set(environment):
    environment(TASK | {"MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29500"})
    variables = environment_from_srun()
    assert (variables["MASTER_ADDR"], variables["MASTER_PORT"]) == ("10.0.0.7", "29500")


def test_concurrent_jobs_and_steps_have_different_ports(environment):
    ports = set()
    for job in ("4711", "4712"):
        for step in ("0", "1", "2"):
            environment(TASK | {"SLURM_JOB_ID": job, "SLURM_STEP_ID": step})
            ports.add(environment_from_srun()["MASTER_PORT"])
    assert len(ports) == 6


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("login", "login"),
        ("node1,node2", "node1"),
        ("gpu[07-09,12],cpu1", "gpu07"),
        ("cpu1,gpu[07-09,12]", "cpu1"),
        ("rack[0-1]n[03,05]-ib", "rack0n03-ib"),
        ("10.0.0.[1-2]", "10.0.0.1"),
    ],
)
def test_first_host_of_a_list(hosts, first):
    assert first_host(hosts) == first


@pytest.mark.parametrize(
    ("short", "counts"), [("2", [2]), ("2(x3),1", [2, 2, 2, 1]), ("8,4(x2)", [8, 4, 4]), ("12(x1)", [12])]
)
def test_counts_per_host(short, counts):
    assert expand_counts(short) == counts
