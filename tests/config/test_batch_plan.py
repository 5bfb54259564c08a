"""Division of the global batch into ranks, micro-batches and gradient accumulation."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elc_bert.config.batch_plan import BatchPlan, plan_batch
from elc_bert.utils.errors import UserError

counts = st.integers(1, 200)


def test_the_largest_possible_micro_batch_up_to_the_maximum_is_chosen():
    assert plan_batch(32768, 16, max_micro_batch=256) == BatchPlan(256, 8, 16)
    assert plan_batch(96, 2, max_micro_batch=20) == BatchPlan(16, 3, 2)
    assert plan_batch(22, 2, max_micro_batch=10) == BatchPlan(1, 11, 2)


@given(micro=counts, accumulation=counts, world=counts, max_micro_batch=counts)
def test_micro_batch_times_accumulation_times_world_size_is_the_global_batch(
    micro, accumulation, world, max_micro_batch
):
    plan = plan_batch(micro * accumulation * world, world, max_micro_batch)
    assert plan.global_batch == plan.micro_batch * plan.accumulation * plan.world_size
    assert plan.global_batch == micro * accumulation * world
    assert plan.world_size == world
    assert plan.micro_batch <= max_micro_batch
    assert not [m for m in range(plan.micro_batch + 1, max_micro_batch + 1) if micro * accumulation % m == 0]


@given(micro=counts, accumulation=counts, world=counts)
def test_a_given_micro_batch_or_accumulation_is_kept(micro, accumulation, world):
    total, plan = micro * accumulation * world, BatchPlan(micro, accumulation, world)
    assert plan_batch(total, world, 1, micro_batch=micro) == plan
    assert plan_batch(total, world, 1, accumulation=accumulation) == plan
    assert plan_batch(total, world, 1, micro_batch=micro, accumulation=accumulation) == plan


@given(total=counts, world=counts, micro=st.none() | counts, accumulation=st.none() | counts)
def test_only_impossible_batches_are_refused_and_the_proposed_values_work(total, world, micro, accumulation):
    possible = any(
        micro in (None, m) and accumulation in (None, a)
        for m in range(1, total + 1)
        for a in range(1, total // m + 1)
        if m * a * world == total
    )
    try:
        plan = plan_batch(total, world, 256, micro, accumulation)
    except UserError as error:
        assert not possible
        check_proposals(str(error), total, world)
    else:
        assert possible
        assert plan.global_batch == total


def check_proposals(message: str, total: int, world: int) -> None:
    proposals = [int(number) for number in re.findall(r"\d+", message.partition("possible")[2])]
    for number in proposals:
        if message.startswith("gradient_accumulation_steps"):
            assert plan_batch(total, world, 256, accumulation=number).accumulation == number
        elif message.startswith("train_micro_batch_size_per_gpu"):
            assert plan_batch(total, world, 256, micro_batch=number).micro_batch == number
        else:
            assert plan_batch(total, number, 256).world_size == number
    assert proposals or "remove one of these keys" in message


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"global_batch": 12, "world_size": 5},
            "train_batch_size: 12 sequences cannot be divided equally among 5 devices; "
            "possible numbers of devices: 1, 2, 3, 4, 6, 12",
        ),
        (
            {"global_batch": 12, "world_size": 2, "micro_batch": 4},
            "train_micro_batch_size_per_gpu: 4 does not divide the 6 sequences of each of 2 devices; "
            "possible: 1, 2, 3, 6",
        ),
        (
            {"global_batch": 12, "world_size": 2, "accumulation": 4},
            "gradient_accumulation_steps: 4 micro-batches do not divide the 6 sequences of each of "
            "2 devices; possible: 1, 2, 3, 6",
        ),
        (
            {"global_batch": 12, "world_size": 2, "micro_batch": 3, "accumulation": 3},
            "train_batch_size 12 is not train_micro_batch_size_per_gpu 3 x gradient_accumulation_steps 3 x "
            "2 devices; remove one of these keys",
        ),
    ],
)
def test_error_messages_name_the_key_and_say_what_to_do(given, message):
    with pytest.raises(UserError) as error:
        plan_batch(**given, max_micro_batch=256)
    assert str(error.value) == message
