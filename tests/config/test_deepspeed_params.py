"""Parameters of optimizers and schedules that DeepSpeed builds."""

import json
from pathlib import Path
from typing import Any

import pytest

from elc_bert.config.batch_plan import BatchPlan
from elc_bert.config.deepspeed import check_deepspeed_sections, deepspeed_config
from elc_bert.config.reader import load_config
from elc_bert.utils.errors import UserError
from tests.config.test_deepspeed_sections import configuration

TORCH = {"torch_adam": True, "fused": True}
PLAN = BatchPlan(micro_batch=4, accumulation=2, world_size=1)


def message(folder: Path, **sections: Any) -> str:
    """Return the error for a configuration, without the name of the file; empty if it is valid."""
    config = load_config(configuration(folder, **sections))
    try:
        check_deepspeed_sections(config)
    except UserError as error:
        return str(error).removeprefix(config.origin)
    return ""


@pytest.mark.parametrize(
    ("name", "params", "expected"),
    [
        ("AdamW", {"lr": 0.01, "betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.1}, ""),
        ("adamw", {"lr": 0.01}, ""),
        ("Adam", {"adam_w_mode": False}, ""),
        ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}, ""),
        ("Muon", {"lr": 0.01, "muon_lr": 0.1}, ""),
        ("AdamW", {"weight_dekay": 1}, ".weight_dekay: unknown for AdamW; did you mean weight_decay?"),
        ("AdamW", {"torch_adam": False, "foreach": True}, ".foreach: unknown for AdamW; "),
        ("Muon", {"muon_lrr": 0.1}, ".muon_lrr: unknown for Muon; did you mean muon_lr?"),
        ("SGD", {"betas": [0.9, 0.98]}, ".betas: unknown for SGD; "),
        ("AdamW", {"lr": -1}, ": AdamW cannot be used with these: Invalid learning rate: -1"),
        (
            "AdamW",
            {"lr": -1, "torch_adam": False},
            ": AdamW cannot be used with these: Invalid learning rate",
        ),
        (
            "AdamW",
            {"betas": [0.9, 2]},
            ": AdamW cannot be used with these: Invalid beta parameter at index 1",
        ),
        ("AdamW", {"lr": True}, ".lr = true: must be a number or text"),
        ("AdamW", {"amsgrad": 1}, ".amsgrad = 1: must be true or false"),
        ("AdamW", {"torch_adam": "yes"}, '.torch_adam = "yes": must be true or false'),
        (
            "AdamW",
            {"fused": True, "foreach": True},
            ": AdamW cannot be used with these: `fused` and `foreach`",
        ),
        (
            "SparseAdam",
            {},
            ": SparseAdam cannot be used with these: SparseAdam does not support dense gradients",
        ),
        ("LBFGS", {}, ": LBFGS cannot be used with these: "),
    ],
)
def test_parameters_of_an_optimizer_are_those_of_its_class(name, params, expected, tmp_path):
    found = message(tmp_path, optimizer={"type": name, "params": params})
    assert found.startswith(f"optimizer.params{expected}" if expected else "")
    assert bool(found) == bool(expected)


def test_lion_needs_a_gpu(monkeypatch, tmp_path):
    from deepspeed.accelerator import get_accelerator

    lion = {"type": "Lion", "params": {"betas": [0.9, 0.99]}}
    monkeypatch.setattr(type(get_accelerator()), "device_name", lambda self, index=None: "cpu")
    assert message(tmp_path, optimizer=lion).startswith("optimizer.type: DeepSpeed's Lion needs a GPU; ")
    monkeypatch.setattr(type(get_accelerator()), "device_name", lambda self, index=None: "cuda")
    assert message(tmp_path, optimizer=lion) == ""
    lion["params"]["eps"] = 0.1
    assert message(tmp_path, optimizer=lion).startswith("optimizer.params.eps: unknown for Lion; ")


@pytest.mark.parametrize(("stage", "is_refused"), [(2, False), (3, True)])
def test_muon_at_stage_3_needs_whole_gradients(stage, is_refused, tmp_path):
    found = message(tmp_path, optimizer={"type": "Muon"}, zero_optimization={"stage": stage})
    assert found.startswith("optimizer.type: Muon at ZeRO stage 3 needs" if is_refused else "")
    assert bool(found) is is_refused
    zero = {"stage": stage, "reduce_scatter": False}
    assert message(tmp_path, optimizer={"type": "Muon"}, zero_optimization=zero) == ""


@pytest.mark.parametrize(("stage", "is_refused"), [(0, False), (1, True), (3, True)])
def test_adagrad_is_refused_under_zero(stage, is_refused, tmp_path):
    found = message(tmp_path, optimizer={"type": "Adagrad"}, zero_optimization={"stage": stage})
    assert found.startswith("optimizer.type: Adagrad creates its state" if is_refused else "")
    assert bool(found) is is_refused


@pytest.mark.parametrize("name", ["Optimizer", "AdamX", "MuAdam", "MuSGD"])
def test_an_optimizer_that_cannot_be_built_is_refused(name, tmp_path):
    assert message(tmp_path, optimizer={"type": name}).startswith("optimizer.type: ")


@pytest.mark.parametrize(
    ("name", "params", "expected"),
    [
        ("WarmupLR", {}, ""),
        ("WarmupLR", {"warmup_num_steps": 4, "warmup_type": "linear"}, ""),
        ("WarmupDecayLR", {"total_num_steps": 10}, ""),
        ("WarmupCosineLR", {"total_num_steps": 10, "warmup_num_steps": 2}, ""),
        ("OneCycle", {"cycle_min_lr": 0.1, "cycle_max_lr": 0.2}, ""),
        ("LRRangeTest", {}, ""),
        (
            "WarmupLR",
            {"warmup_proportion": 0.1},
            ".warmup_proportion: unknown for WarmupLR; did you mean warmup_",
        ),
        ("WarmupLR", {"last_batch_iteration": 3}, ".last_batch_iteration: unknown for WarmupLR; "),
        ("WarmupDecayLR", {}, ": WarmupDecayLR needs a value for total_num_steps; add it"),
        ("WarmupDecayLR", {"total_num_steps": 0}, ".total_num_steps = 0: must be at least 1"),
        ("OneCycle", {}, ": OneCycle needs a value for cycle_min_lr and cycle_max_lr; add it"),
        (
            "WarmupLR",
            {"warmup_num_steps": 4.0},
            ": WarmupLR cannot be used with these: warmup_num_steps must be",
        ),
        ("WarmupLR", {"warmup_num_steps": True}, ".warmup_num_steps = true: must be a number"),
        ("WarmupLR", {"warmup_type": "cubic"}, ".warmup_type: cubic is unknown; choose log or linear"),
        ("WarmupLR", {"warmup_max_lr": "big"}, ": WarmupLR cannot be used with these: "),
        (
            "OneCycle",
            {"cycle_min_lr": 0.1, "cycle_max_lr": 0.2, "cycle_first_step_size": 0},
            ": OneCycle cannot",
        ),
    ],
)
def test_parameters_of_a_schedule_are_those_of_its_class(name, params, expected, tmp_path):
    found = message(tmp_path, scheduler={"type": name, "params": params})
    assert found.startswith(f"scheduler.params{expected}" if expected else "")
    assert bool(found) == bool(expected)


@pytest.mark.parametrize(
    ("optimizer", "zero", "expected"),
    [
        ({"type": "AdamW"}, {}, TORCH),
        ({"type": "adam", "params": {"lr": 0.1}}, {}, {"torch_adam": True, "fused": True, "lr": 0.1}),
        ({"type": "AdamW", "params": {"fused": False}}, {}, {"torch_adam": True, "fused": False}),
        ({"type": "AdamW", "params": {"foreach": True}}, {}, TORCH | {"fused": False, "foreach": True}),
        ({"type": "Adam", "params": {"foreach": False}}, {}, TORCH | {"foreach": False}),
        ({"type": "AdamW", "params": {"torch_adam": False}}, {}, {"torch_adam": False}),
        ({"type": "AdamW", "params": {"torch_adam": "False"}}, {}, {"torch_adam": False}),
        ({"type": "AdamW"}, {"stage": 2, "offload_optimizer": {"device": "cpu"}}, TORCH),
        ({"type": "AdamW"}, {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/tmp"}}, {}),
        ({"type": "AdamW"}, {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}, {}),
        ({"type": "AdamW"}, {"stage": 3, "offload_optimizer": {"device": "cpu", "super_offload": True}}, {}),
        ({"type": "SGD", "params": {"lr": 0.1}}, {}, {"lr": 0.1}),
        ({"type": "Muon", "params": {"lr": 0.1}}, {}, {"lr": 0.1, "torch_adam": True}),
        ({"type": "Muon", "params": {"torch_adam": False}}, {}, {"torch_adam": False}),
    ],
)  # fmt: skip
def test_adam_is_pytorchs_fused_one_unless_a_feature_needs_deepspeeds(optimizer, zero, expected, tmp_path):
    config = load_config(configuration(tmp_path, optimizer=optimizer, zero_optimization=zero))
    check_deepspeed_sections(config)
    assert deepspeed_config(config, PLAN)["optimizer"] == {"type": optimizer["type"], "params": expected}
    # The default is not written into the configuration, which belongs to the identity of a run.
    assert (
        json.loads(config.model_dump_json())["optimizer"]["params"].keys()
        <= optimizer.get("params", {}).keys()
    )


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        ({"type": "Cosine"}, 0.02),
        ({"type": "WarmupLR"}, 0.02),
        ({"type": "WarmupLR", "params": {"warmup_max_lr": 0.3}}, 0.3),
        ({"type": "WarmupDecayLR", "params": {"total_num_steps": 10}}, 0.001),
        ({"type": "WarmupDecayLR", "params": {"total_num_steps": 10, "warmup_max_lr": 0.3}}, 0.3),
        ({"type": "WarmupCosineLR", "params": {"total_num_steps": 10}}, 0.02),
        ({"type": "OneCycle", "params": {"cycle_min_lr": 0.1, "cycle_max_lr": 0.2}}, 0.2),
    ],
)
def test_the_peak_learning_rate_is_that_of_the_schedule_if_it_has_its_own(scheduler, expected, tmp_path):
    """The start table shows it. The values are compared with the schedule that DeepSpeed builds."""
    import torch
    from deepspeed.runtime import lr_schedules

    adamw = {"type": "AdamW", "params": {"lr": 0.02}}
    config = load_config(configuration(tmp_path, optimizer=adamw, scheduler=scheduler))
    assert config.peak_learning_rate == expected
    if not config.scheduler.is_ours:
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=0.02)
        built = getattr(lr_schedules, config.scheduler.type)(optimizer, **config.scheduler.params)
        rates = []
        for _ in range(4001):
            built.step()
            rates.append(optimizer.param_groups[0]["lr"])
        if (
            config.scheduler.params.get("total_num_steps") is None
        ):  # else it decays before the end of the warmup
            assert max(rates) == pytest.approx(expected, rel=1e-3)
