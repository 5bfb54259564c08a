"""Checkpoints are ordered by their step."""

from elc_bert.checkpoint.files import all_checkpoints, newest_first


def test_checkpoints_are_ordered_by_step_beyond_a_million(tmp_path):
    for step in (1_000_000, 999_999, 20, 10_000_000):
        (tmp_path / f"step-{step:06d}").mkdir()
    in_order = ["step-000020", "step-999999", "step-1000000", "step-10000000"]
    assert [path.name for path in all_checkpoints(tmp_path)] == in_order
    (tmp_path / "latest").write_text("step-1000000")
    assert [path.name for path in newest_first(tmp_path)] == ["step-1000000", "step-999999", "step-000020"]
