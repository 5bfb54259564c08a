"""Description of the parts of the project that a test run did not cover."""

from tests.support.uncovered import describe_skips


def test_skips_are_grouped_by_part_and_reason():
    reasons = [
        "Skipped: no GPU on this machine",
        "Skipped: slurmctld is missing",
        "Skipped: no GPU on this machine",
        "Skipped: because",
    ]
    assert describe_skips(reasons) == [
        "jobs under Slurm (1 skipped): slurmctld is missing",
        "kernels and training on a GPU (2 skipped): no GPU on this machine",
        "other tests (1 skipped): because",
    ]
