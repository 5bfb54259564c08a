"""The plan of a run: its parameters, memory, communication and time, and the command that prints it."""

import json
import re
from pathlib import Path

import pytest
import torch

from elc_bert.config.deepspeed_sections import ZeroSection
from elc_bert.config.reader import load_config
from elc_bert.config.schema import RunConfig
from elc_bert.model import ElcBertForMaskedLM, flops_per_token
from elc_bert.planner.communication import collectives
from elc_bert.planner.devices import DEVICES, Device, find_device
from elc_bert.planner.parameters import SMALL, Parameters, count_parameters
from elc_bert.planner.plan import Machine, largest_micro_batch, make_plan, warnings
from elc_bert.planner.states import ALLREDUCE_ELEMENTS, Layout, layout_of, pieces
from elc_bert.utils.errors import UserError
from elc_bert_launch.plan import main
from tests.support import launching

DS_CONFIGS = sorted((Path(__file__).resolve().parents[2] / "ds_configs").glob("*.json"))
MILLION = Parameters(
    200_000, 790_000, 100, 9_900, (790_000, 210_000), decaying_tensors=61, largest=100_000, small=0
)
"""Counts of a model of a million parameters, so that one byte per parameter is one MB."""


def load(name: str, *overrides: str) -> RunConfig:
    return load_config(DS_CONFIGS[0].parent / f"{name}.json", overrides)


@pytest.mark.parametrize("variant", ["base", "zero", "normalized", "weighted_output"])
@pytest.mark.parametrize("path", DS_CONFIGS, ids=lambda path: path.stem)
def test_parameter_counts_equal_those_of_the_model(path, variant):
    config = load_config(path, [f"elc_bert.model.variant={variant}"]).elc_bert.model
    counts = count_parameters(config)
    with torch.device("meta"):
        model = ElcBertForMaskedLM(config)
    assert counts.total == model.num_parameters() == sum(counts.groups)
    layers = config.num_hidden_layers
    assert counts.mixing == layers * (layers + 1) // 2 + (layers + 1) * (variant == "weighted_output")
    assert counts.decaying_tensors == 5 * layers + 1


@pytest.mark.parametrize(
    ("name", "millions"), [("strict_small", 24), ("strict", 98), ("large", 322), ("xl", 1510)]
)
def test_configurations_have_the_parameters_of_their_size(name, millions):
    assert count_parameters(load(name).elc_bert.model).total / 1e6 == pytest.approx(millions, rel=0.02)


def state(stage: int, devices: int, precision: str = "bf16", sums: str = "fp32", **zero) -> dict[str, float]:
    """Return the MB of state of a million parameters on a GPU, by ``Piece.when`` or ``host``."""
    overrides = [f"zero_optimization={json.dumps({'stage': stage, **zero})}", "bf16.enabled=false"]
    overrides += [f"{precision}.enabled=true"] if precision != "fp32" else []
    overrides += [f"data_types={json.dumps({'grad_accum_dtype': sums} if sums else {})}"]
    found: dict[str, float] = {}
    for piece in pieces(layout_of(load("strict", *overrides), devices), MILLION, on_cpu=False):
        when = "host" if piece.on_host else piece.when
        found[when] = found.get(when, 0) + piece.bytes / 1e6
    return found


def test_state_without_zero():
    # Bytes per parameter in fp32: weights 4, moments 8, gradients 4, their contiguous copy 4.
    assert state(0, 8, "fp32", "") == {"always": 12, "gradients": 4, "reduction": 4}
    # In bf16: weights 2, masters 4, moments 8, gradients 2, their copy 2; the step casts them to fp32.
    assert state(0, 8, "bf16", "") == {"always": 14, "gradients": 2, "reduction": 2, "step": 4}


def test_state_of_zero_1_in_bf16_with_fp32_sums():
    # Weights 2, gradients 2, fp32 sums 4; partitioned: master weights and moments 12. Sums are sent in bf16.
    assert state(1, 4) == {"always": 6 + 12 / 4, "gradients": 2, "reduction": 4 + 2}


def test_state_of_zero_2():
    found = state(2, 4, reduce_bucket_size=500_000)
    # Weights 2; partitioned: master weights and moments 12, fp32 sums 4. Bucket of bf16 gradients 1.
    assert found == {"always": 2 + 12 / 4, "reduction": 1, "backward": 1, "gradients": 4 / 4}


def test_state_of_zero_3():
    found = state(3, 4, reduce_bucket_size=500_000, stage3_max_live_parameters=250_000)
    # Partitioned: weights 2, masters and moments 12, sums 4. Bucket 1, its copy 1, gathered weights 0.5.
    assert found == {"always": 18 / 4 + 1, "backward": 1 + 0.5, "step": 4 / 4}


def test_offload_moves_master_weights_and_moments_to_the_host():
    found = state(2, 4, offload_optimizer={"device": "cpu"})
    assert found["host"] == pytest.approx((12 + 4 + 2) / 4)
    assert found["always"] == pytest.approx(2 + 0.2)


def test_a_cpu_allocates_only_the_used_part_of_a_bucket():
    layout = layout_of(load("strict_small", "zero_optimization.stage=3"), 2)
    bucket = {
        on_cpu: next(p.bytes for p in pieces(layout, MILLION, on_cpu) if p.name == "reduction bucket")
        for on_cpu in (True, False)
    }
    assert bucket == {True: 2e6, False: 1e9}


def test_default_sizes_equal_those_of_deepspeed():
    from deepspeed.runtime import engine
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    defaults = DeepSpeedZeroConfig(stage=3)
    for key in ("reduce_bucket_size", "stage3_max_live_parameters"):
        assert getattr(ZeroSection(), key) == getattr(defaults, key.removeprefix("stage3_"))
    for stage in range(4):
        assert (
            ZeroSection(stage=stage).overlaps_communication == DeepSpeedZeroConfig(stage=stage).overlap_comm
        )
    assert defaults.param_persistence_threshold == SMALL
    assert engine.MEMORY_OPT_ALLREDUCE_SIZE == ALLREDUCE_ELEMENTS


@pytest.mark.launcher
def test_deepspeed_keeps_the_planned_bytes_with_every_stage_and_precision():
    script = Path(__file__).with_name("state_each.py")
    result = launching.run("forked", 2, [DS_CONFIGS[0].parent / "strict_small.json"], script=script)
    assert result.status == 0, result.output
    found = re.findall(r"^(\d \S+ \S+): (\d+) (\d+)$", result.stdout, re.MULTILINE)
    assert len(found) == 11
    for case, kept, planned in found:
        assert int(kept) == pytest.approx(int(planned), rel=0.005), case


def layout(stage: int, devices: int, weights: int = 2, wire: int = 2) -> Layout:
    return Layout(stage, devices, weights, 4, wire, False, False, 500_000_000, 10**9, stage == 3)


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (0, {"gradients": 2e6}),
        (1, {"gradients": 2e6, "weights": 2e6, "LAMB's norms": 488}),
        (2, {"gradients": 5 * 2e6, "weights": 2e6, "LAMB's norms": 488}),
        (3, {"gradients": 5 * 2e6, "weights": 5 * 2 * 2e6, "LAMB's norms": 488}),
    ],
)
def test_bytes_communicated_in_a_step_of_five_micro_batches(stage, expected):
    found = {each.what: each.bytes for each in collectives(layout(stage, 4), MILLION, 5, lamb=True)}
    assert found == {**expected, "counts and norms": 16}
    without = collectives(layout(stage, 4), MILLION, 5, lamb=False)
    assert "LAMB's norms" not in [each.what for each in without]
    assert collectives(layout(stage, 1), MILLION, 5, lamb=True) == []


def test_bytes_that_a_device_sends_in_a_ring():
    gradients, weights = collectives(layout(3, 4), MILLION, 1, lamb=False)[:2]
    assert (gradients.operation, gradients.sent_per_device) == ("reduce-scatter", 2e6 * 3 / 4)
    assert (weights.operation, weights.sent_per_device) == ("all-gather", 4e6 * 3 / 4)
    (gradients, *_) = collectives(layout(0, 4), MILLION, 1, lamb=False)
    assert (gradients.operation, gradients.sent_per_device) == ("all-reduce", 2 * 2e6 * 3 / 4)


def machine(devices: int = 8, **changes) -> Machine:
    figures = {"bf16_tflops": 100.0, "fp32_tflops": 10.0, "memory": 80e9, "link": 100.0}
    return Machine(Device("test", **{**figures, **changes}), devices, 100.0, 0.5, "fused")


def test_time_is_computed_from_peak_flops_and_bandwidth():
    plan = make_plan(load("strict"), machine(1))
    (short, long) = plan.phases
    assert (short.steps, long.steps) == (14_062, 1_563)
    operations = flops_per_token(plan.config.elc_bert.model, 128, 0.15) * 32_768 * 128
    assert short.time.seconds == pytest.approx(operations / 50e12)
    again = make_plan(load("strict", "elc_bert.training.activation_checkpointing=true"), machine(1))
    assert again.phases[0].time.seconds == pytest.approx(short.time.seconds * 4 / 3)
    eight = make_plan(load("strict"), machine(8)).phases[0].time
    sent = plan.parameters.total * 2 * 7 / 8 * (2 + 1)
    assert eight.communication == pytest.approx(sent / 100e9, rel=1e-3)
    assert eight.seconds == pytest.approx(eight.compute + eight.communication)
    three = make_plan(load("strict", "zero_optimization.stage=3"), machine(8)).phases[0].time
    assert three.seconds == max(three.compute, three.communication)


@pytest.mark.parametrize("kernels", ["fused", "plain"])
@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("path", DS_CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_fits_on_devices_of_80_gb(path, devices, kernels):
    plan = make_plan(load_config(path), Machine(DEVICES["A100-80"], devices, 300.0, 0.4, kernels))
    assert plan.fits
    assert warnings(plan) == []


def test_a_plan_that_does_not_fit_suggests_the_largest_micro_batch_that_does():
    plan = make_plan(load("strict"), machine(memory=8e9))
    largest = largest_micro_batch(plan)
    (warning,) = warnings(plan)
    assert warning.startswith("does not fit: sequences of 128 need")
    assert warning.endswith(f"--set elc_bert.training.max_micro_batch_size={largest}")
    fitting = make_plan(load("strict", f"elc_bert.training.max_micro_batch_size={largest}"), plan.machine)
    assert fitting.fits
    twice = load("strict", f"elc_bert.training.max_micro_batch_size={2 * largest}")
    assert not make_plan(twice, plan.machine).fits
    assert "not even a micro-batch of 1 fits" in warnings(make_plan(load("strict"), machine(memory=1e9)))[0]


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["train_micro_batch_size_per_gpu=8192"],
        ["gradient_accumulation_steps=4"],
        ["train_micro_batch_size_per_gpu=8192", "gradient_accumulation_steps=4"],
    ],
)
def test_the_advised_options_make_a_run_fit_whatever_keys_are_given(given):
    plan = make_plan(load("strict", "elc_bert.training.max_micro_batch_size=8192", *given), machine(1))
    (warning,) = warnings(plan)
    advised = re.findall(r"--set (\S+)", warning)
    overrides = ["elc_bert.training.max_micro_batch_size=8192", *given, *advised]
    assert make_plan(load("strict", *overrides), plan.machine).fits


def test_activation_checkpointing_and_higher_zero_stages_reduce_memory():
    def needed(*overrides: str) -> float:
        return make_plan(load("xl", *overrides), machine(64)).worst.memory.total

    stages = [needed(f"zero_optimization.stage={stage}") for stage in (1, 2, 3)]
    assert stages == sorted(stages, reverse=True)
    assert needed("elc_bert.training.activation_checkpointing=false") > 4 * needed()


def test_device_names_ignore_case_and_separators_and_unknown_ones_are_refused():
    assert find_device("a100-80") == find_device("A100 80".replace(" ", "_")) == DEVICES["A100-80"]
    with pytest.raises(UserError, match=r"^--device H10: unknown device; did you mean H100\?"):
        find_device("H10")
    cpu = find_device("cpu", processes=2)
    assert cpu.is_cpu
    assert 0 < cpu.memory < 1e13


def run(*arguments: str, capsys) -> tuple[int, str, str]:
    status = main(["--config", str(DS_CONFIGS[0].parent / "strict.json"), *arguments])
    return status, *capsys.readouterr()


def test_the_command_prints_a_table_and_saves_json(tmp_path, capsys):
    file = tmp_path / "plan.json"
    status, out, _ = run("--device", "H100", "--devices", "8", "--json", str(file), capsys=capsys)
    assert status == 0
    assert "98.2M parameters" in out
    assert "32768 sequences of 128 = 256 micro-batch x 16 accumulation x 8 devices" in out
    assert "488 bytes a step" in out
    saved = json.loads(file.read_text())
    assert saved["parameters"]["total"] == sum(saved["parameters"]["groups"])
    assert saved["fits"] is True
    assert [phase["sequence_length"] for phase in saved["phases"]] == [128, 512]
    assert saved["phases"][0]["memory"]["pieces"]["master weights"] == saved["parameters"]["total"] * 4 / 8


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (
            ["--set", "zero_optimization.stage=5"],
            "strict.json: zero_optimization.stage = 5: choose 0, 1, 2 or 3",
        ),
        (
            ["--set", "zero_optimization.reduce_bucket_size=big"],
            'strict.json: zero_optimization.reduce_bucket_size = "big": must be a whole number of at least 1',
        ),
        (
            ["--set", "activation_checkpointing.cpu_checkpointing=true"],
            "strict.json: activation_checkpointing: has no effect on this project's model",
        ),
        (["--set", "elc_bert.model.hidden_size=1000000000000"], "should be less than or equal to 65536"),
        (["--set", "elc_bert.model.num_hidden_layers=10000000"], "should be less than or equal to 1024"),
        (["--set", "bf16.enabled=auto"], 'strict.json: bf16.enabled = "auto": only Hugging Face'),
        (
            ["--set", "data_types.grad_accum_dtype=fp33"],
            "strict.json: data_types.grad_accum_dtype = 'fp33': choose fp32, bf16 or fp16",
        ),
        (["--devices", "7"], "train_batch_size: 32768 sequences cannot be divided equally among 7 devices"),
        (["--device", "H10"], "--device H10: unknown device; did you mean H100?"),
        (["--set", "elc_bert.model.hiden_size=3"], "unknown key elc_bert.model.hiden_size; did you mean"),
    ],
)
def test_a_user_error_is_one_line(arguments, error, capsys):
    status, out, line = run(*arguments, capsys=capsys)
    assert (status, out) == (1, "")
    assert "error: " in line
    assert line.count("\n") == 1
    assert error in line


@pytest.mark.parametrize("option", [["--devices", "0"], ["--mfu", "1.5"], ["--memory", "-1"]])
def test_options_out_of_range_are_refused(option, capsys):
    with pytest.raises(SystemExit):
        run(*option, capsys=capsys)
    assert option[0] in capsys.readouterr().err
