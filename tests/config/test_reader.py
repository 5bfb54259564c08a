"""Reading a configuration file: refused keys and values, error messages, and ``--set``."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from elc_bert.config.deepspeed import check_deepspeed_sections
from elc_bert.config.reader import load_config
from elc_bert.engine.monitor import check_monitors
from elc_bert.utils.errors import UserError

REQUIRED = {
    "train_batch_size": 8,
    "elc_bert": {
        "data": {"train": "train", "dev": "dev", "tokenizer": "tokenizer.json"},
        "training": {"output_dir": "run", "max_steps": 10},
    },
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A configuration file with the required keys only."""
    path = tmp_path / "run.json"
    path.write_text(json.dumps(REQUIRED), encoding="utf-8")
    return path


def load_and_check(file: Path, overrides: Sequence[str]) -> None:
    config = load_config(file, overrides)
    check_deepspeed_sections(config)
    check_monitors(config)


def error_message(file: Path, *overrides: str) -> str:
    """Return the error message for a configuration, without the file name that it begins with."""
    with pytest.raises(UserError) as error:
        load_and_check(file, overrides)
    message = str(error.value)
    assert message.startswith(f"{file}: ")
    assert "\n" not in message
    return message.removeprefix(f"{file}: ")


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("elc_bertt", "elc_bert"),
        ("train_batchsize", "train_batch_size"),
        ("zero_optimisation", "zero_optimization"),
        ("elc_bert.trainning", "training"),
        ("elc_bert.model.hiden_size", "hidden_size"),
        ("elc_bert.data.mask_probabilty", "mask_probability"),
        ("elc_bert.training.max_step", "max_steps"),
        ("elc_bert.evaluation.evry", "every"),
        ("elc_bert.checkpoint.kep", "keep"),
        ("optimizer.params.weight_dekay", "weight_decay"),
        ("scheduler.params.warmup", "warmup_proportion"),
        ("bf16.enable", "enabled"),
        ("fp16.loss_scales", "loss_scale"),
        ("zero_optimization.stages", "stage"),
        ("tensorboard.job_nam", "job_name"),
        ("data_types.grad_accum_dtpe", "grad_accum_dtype"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_valid_one(file, key, nearest):
    assert error_message(file, f"{key}=1") == f"unknown key {key}; did you mean {nearest}?"


def test_an_unknown_key_without_a_similar_valid_one_is_reported_with_all_valid_ones(file):
    assert (
        error_message(file, "elc_bert.checkpoint.zzz=1")
        == "unknown key elc_bert.checkpoint.zzz; valid: background, every, keep, keep_best, keep_every"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("elc_bert.training.max_steps=0", "elc_bert.training.max_steps = 0: input should be greater than 0"),
        ("elc_bert.training.long_after=1.5", "elc_bert.training.long_after = 1.5: input should be less than"),
        (
            "elc_bert.training.seed=-1",
            "elc_bert.training.seed = -1: input should be greater than or equal to 0",
        ),
        (
            "elc_bert.data.mask_probability=0",
            "elc_bert.data.mask_probability = 0: input should be greater than",
        ),
        (
            "elc_bert.model.variant=zeros",
            "elc_bert.model.variant = \"zeros\": input should be 'base', 'zero',",
        ),
        (
            "elc_bert.model.vocab_size=big",
            'elc_bert.model.vocab_size = "big": input should be a valid integer',
        ),
        ("train_batch_size=1.5", "train_batch_size = 1.5: input should be a valid integer"),
        ("train_batch_size=auto", "train_batch_size: give the global batch as a number"),
        ("gradient_clipping=-1", "gradient_clipping = -1: input should be greater than or equal to 0"),
        ("optimizer.params.lr=-1", "optimizer.params.lr = -1: input should be greater than or equal to 0"),
        ("optimizer.params.betas=[0.9,1]", "optimizer.params.betas[1] = 1: input should be less than 1"),
        (
            "scheduler.params.warmup_proportion=2",
            "scheduler.params.warmup_proportion = 2: input should be less",
        ),
        (
            "elc_bert.data.segments=sentences",
            "elc_bert.data.segments = \"sentences\": input should be 'reference' or 'packed'",
        ),
        ("zero_optimization.stage=4", "zero_optimization.stage = 4: choose 0, 1, 2 or 3"),
        ("bf16=true", "bf16: must be a section, not True"),
        ("data_types=null", "data_types: must be a section, not None"),
        (
            "data_types.grad_accum_dtype=fp33",
            "data_types.grad_accum_dtype = 'fp33': choose fp32, bf16 or fp16",
        ),
        ("torch_autocast.dtype=float16", "torch_autocast.dtype = \"float16\": input should be 'bfloat16'"),
        (
            'torch_autocast.lower_precision_safe_modules=["torch.nn.Liner"]',
            "torch_autocast.lower_precision_safe_modules: there is no class torch.nn.Liner",
        ),
        (
            'zero_optimization={"stage": 1, "compute_grad_norm": false}',
            "zero_optimization.compute_grad_norm = false: ",
        ),
        (
            'zero_optimization={"stage": 2, "offload_param": {"device": "cpu"}}',
            "zero_optimization.offload_param: has no effect at stage 2; set zero_optimization.stage to 3",
        ),
        ("optimizer.type=Lam", "optimizer.type: unknown optimizer Lam; did you mean Lamb?"),
        ("scheduler.type=cosine", "scheduler.type: unknown schedule cosine; did you mean Cosine?"),
    ],
)
def test_an_invalid_value_is_reported_with_the_valid_ones(file, override, message):
    assert error_message(file, override).startswith(message)


def test_training_datasets_are_a_path_or_a_list(file, tmp_path):
    key = "elc_bert.data.train"
    blend = [{"path": "data/a", "weight": 0.7}, {"path": "data/b", "weight": 3}]
    epochs = [{"path": "data/a", "epochs": 2}, {"path": "data/b", "epochs": 0.5}]
    saved = tmp_path / "saved.json"
    for value, expected in (
        ("data/a", [("data/a", None, None)]),
        (json.dumps(["data/a"]), [("data/a", None, None)]),
        (json.dumps(blend), [("data/a", 0.7, None), ("data/b", 3.0, None)]),
        (json.dumps(epochs), [("data/a", None, 2.0), ("data/b", None, 0.5)]),
        (json.dumps(epochs[:1]), [("data/a", None, 2.0)]),
    ):
        config = load_config(file, [f"{key}={value}"])
        train = config.elc_bert.data.train
        assert [(str(each.path), each.weight, each.epochs) for each in train] == expected
        saved.write_text(config.model_dump_json(), encoding="utf-8")
        assert load_config(saved).elc_bert.data == config.elc_bert.data
        written = json.loads(saved.read_text())["elc_bert"]["data"]["train"]
        assert written == ("data/a" if expected == [("data/a", None, None)] else json.loads(value))


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            3,
            'elc_bert.data.train: must be a path, or a list such as [{"path": "data/a", "weight": 0.7}, ...]',
        ),
        ([], "elc_bert.data.train: must be a path, or a list such as"),
        ({"path": "a"}, "elc_bert.data.train: must be a path, or a list such as"),
        ([3], "elc_bert.data.train[0] = 3: input should be a valid dictionary"),
        ([{"weight": 1}], "missing key elc_bert.data.train[0].path"),
        (["a", "b"], "elc_bert.data.train[0].weight: missing; give the weight or the epochs of a"),
        (
            [{"path": "a", "epochs": 1}, {"path": "b"}],
            "elc_bert.data.train[1].weight: missing; give the weight or the epochs of b",
        ),
        (
            [{"path": "a", "weight": 1}, {"path": "b", "epochs": 1}],
            "elc_bert.data.train[1].epochs: train[0] has weight",
        ),
        (
            [{"path": "a", "weight": 1, "epochs": 1}],
            "elc_bert.data.train[0]: has both weight and epochs; keep one",
        ),
        (
            [{"path": "a", "weight": 1}, {"path": "./a", "weight": 2}],
            "elc_bert.data.train[1].path: a is listed twice",
        ),
        (
            [{"path": "a", "weight": 1}, {"path": "b", "weight": 0}],
            "elc_bert.data.train[1].weight = 0: input should be greater than 0",
        ),
        (
            [{"path": "a", "weight": float("inf")}],
            "elc_bert.data.train[0].weight = Infinity: input should be a finite number",
        ),
        (
            [{"path": "a", "weigth": 1}],
            "unknown key elc_bert.data.train[0].weigth; did you mean weight?",
        ),
    ],
)
def test_an_invalid_blend_is_reported_with_the_entry_at_fault(file, train, message):
    assert error_message(file, f"elc_bert.data.train={json.dumps(train)}").startswith(message)


def test_keys_that_contradict_each_other_are_refused(file):
    heads = error_message(file, "elc_bert.model.hidden_size=384", "elc_bert.model.num_attention_heads=7")
    assert heads == (
        "elc_bert.model: hidden_size 384 is not divisible by num_attention_heads 7; "
        "nearest valid values: 3, 4, 6, 8"
    )
    split = error_message(file, "elc_bert.data.random_probability=0.6", "elc_bert.data.keep_probability=0.5")
    assert split == "elc_bert.data: random_probability + keep_probability must not exceed 1"
    both = error_message(file, "bf16.enabled=true", "fp16.enabled=true")
    assert both == "bf16 and fp16 are both enabled; keep one"
    both = error_message(file, "bf16.enabled=true", "torch_autocast.enabled=true")
    assert both == "bf16 and torch_autocast are both enabled; keep one"
    offload = error_message(file, "zero_optimization.offload_optimizer.device=cpu")
    assert offload == (
        "zero_optimization.offload_optimizer: has no effect at stage 0; set zero_optimization.stage to 1, "
        "2 or 3"
    )
    sums = error_message(file, "bf16.enabled=true", "data_types.grad_accum_dtype=fp32")
    assert sums == (
        "data_types.grad_accum_dtype = fp32: without ZeRO, DeepSpeed sums in bf16, the type of the weights; "
        "remove it, or set zero_optimization.stage to 1"
    )


@pytest.mark.parametrize(("stage", "is_refused"), [(0, False), (1, False), (2, True), (3, True)])
def test_a_predivided_gradient_is_refused_where_deepspeed_refuses_it(file, stage, is_refused):
    settings = [f"zero_optimization.stage={stage}", "gradient_predivide_factor=2"]
    if is_refused:
        assert error_message(file, *settings).startswith("gradient_predivide_factor: DeepSpeed cannot use it")
    else:
        load_and_check(file, settings)
    load_and_check(file, [*settings, "zero_optimization.reduce_scatter=false"])
    load_and_check(file, [f"zero_optimization.stage={stage}", "gradient_predivide_factor=1"])


@pytest.mark.parametrize("name", ["weights", "nontrainable_weights", "gradients"])
def test_quantized_communication_is_refused_on_a_cpu(file, name, monkeypatch):
    from deepspeed.accelerator import get_accelerator

    settings = ["zero_optimization.stage=3", f"zero_optimization.zero_quantized_{name}=true"]
    monkeypatch.setattr(type(get_accelerator()), "device_name", lambda self, index=None: "cpu")
    expected = f"zero_optimization.zero_quantized_{name}: needs a GPU; remove it"
    assert error_message(file, *settings) == expected
    monkeypatch.setattr(type(get_accelerator()), "device_name", lambda self, index=None: "cuda")
    load_and_check(file, settings)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_lamb_is_accepted_with_every_zero_stage_and_with_offload(file, stage):
    load_and_check(
        file,
        [f"zero_optimization.stage={stage}", "zero_optimization.offload_optimizer.device=cpu"],
    )


@pytest.mark.parametrize(
    "override",
    [
        "zero_optimization.offload_optimizer.device=nvme",
        "zero_optimization.offload_optimizer.ratio=0.5",
        "zero_optimization.offload_optimizer.super_offload=true",
        "zero_optimization.zenflow.topk_ratio=0.1",
        "fp16.fp16_master_weights_and_grads=true",
        "bf16.bf16_master_weights_and_grads=true",
        "bf16.bf16_optimizer_states=true",
    ],
)
def test_lamb_is_refused_with_settings_under_which_it_would_not_be_exact(file, override):
    settings = ["zero_optimization.stage=3", "zero_optimization.offload_optimizer.device=cpu", override]
    key = override.partition("=")[0].removesuffix(".topk_ratio")
    assert error_message(file, *settings).startswith(f"{key}: does not work with optimizer.type Lamb: ")
    load_and_check(file, [*settings, "optimizer.type=AdamW"])


def test_fp16_is_refused_on_a_device_that_does_not_support_it(file, monkeypatch):
    from deepspeed.accelerator import get_accelerator

    monkeypatch.setattr(type(get_accelerator()), "is_fp16_supported", lambda self: False)
    assert "cannot compute in fp16; set it to false" in error_message(file, "fp16.enabled=true")
    monkeypatch.setattr(type(get_accelerator()), "is_fp16_supported", lambda self: True)
    load_and_check(file, ["fp16.enabled=true"])


def test_all_problems_are_reported_at_once(file):
    message = error_message(file, "elc_bert.training.seed=-1", "elc_bert.model.hiden_size=3")
    assert "elc_bert.training.seed" in message
    assert "elc_bert.model.hiden_size" in message


def test_missing_required_keys_are_named(file):
    file.write_text('{"train_batch_size": 8}')
    assert error_message(file) == "missing key elc_bert"
    file.write_text('{"elc_bert": {"data": {}, "training": {"max_steps": 1}}}')
    assert error_message(file) == (
        "missing key train_batch_size; missing key elc_bert.data.train; missing key elc_bert.data.dev; "
        "missing key elc_bert.data.tokenizer; missing key elc_bert.training.output_dir"
    )


def test_files_that_are_not_a_configuration_are_refused(file):
    file.write_text('{"train_batch_size": 8,\n "elc_bert": {]}')
    with pytest.raises(UserError, match=r"run\.json:2:15: not valid JSON: Expecting property name"):
        load_config(file)
    file.write_text('{"elc_bert": {"model": {"vocab_size": 1, "vocab_size": 2}}}')
    assert error_message(file) == "key vocab_size is given twice; remove one"
    file.write_text("[1, 2]")
    assert error_message(file) == "must contain a JSON object, not a list"
    file.write_bytes(b"\xff\xfe\x00")
    assert error_message(file).startswith("cannot be read: ")
    with pytest.raises(UserError, match=r"cannot be read: .*Is a directory"):
        load_config(file.parent)
    file.unlink()
    assert error_message(file) == "no such configuration file; see ds_configs/ for examples"


def test_a_byte_order_mark_is_ignored(file, tmp_path):
    marked = tmp_path / "marked.json"
    marked.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert load_config(marked).model_dump() == load_config(file).model_dump()


def test_set_overrides_the_file_and_the_last_value_of_a_key_wins(file):
    config = load_config(file, ["elc_bert.training.max_steps=20", "elc_bert.training.max_steps=30"])
    assert config.elc_bert.training.max_steps == 30
    assert load_config(file).elc_bert.training.max_steps == 10
    assert load_config(file).elc_bert.training.sequence_length == 128  # set by neither, so the default


def test_values_of_set_are_json_or_text(file):
    config = load_config(
        file,
        [
            "elc_bert.training.output_dir=runs/a=b",
            "elc_bert.evaluation.sequences=null",
            "elc_bert.training.activation_checkpointing=true",
            "optimizer.params.betas=[0.8, 0.9]",
            'scheduler={"type": "Linear", "params": {"min_factor": 0.2}}',
            "bf16.enabled=true",
            "gradient_clipping=1e-1",
        ],
    )
    assert config.elc_bert.training.output_dir == Path("runs/a=b")
    assert config.elc_bert.evaluation.sequences is None
    assert config.elc_bert.training.activation_checkpointing is True
    assert config.optimizer.params["betas"] == (0.8, 0.9)
    assert config.optimizer.params["eps"] == 1e-6  # not set, so the default
    assert config.scheduler.params == {"min_factor": 0.2, "warmup_proportion": 0.016}
    assert config.precision == "bf16"
    assert config.gradient_clipping == 0.1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("elc_bert.training.max_steps", "--set elc_bert.training.max_steps: write it as key.path=value"),
        ("=3", "--set =3: write it as key.path=value"),
        (
            'optimizer={"type": "Lamb", "type": "AdamW"}',
            '--set optimizer={"type": "Lamb", "type": "AdamW"}: key type is given twice; remove one',
        ),
        (
            "train_batch_size.x=3",
            "--set train_batch_size.x=3: train_batch_size is a value, not a section; remove what follows it",
        ),
    ],
)
def test_values_of_set_that_cannot_be_applied_are_refused(file, override, message):
    with pytest.raises(UserError) as error:
        load_config(file, [override])
    assert str(error.value) == message


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_a_monitor_whose_package_is_not_installed_is_refused(file):
    assert error_message(file, "wandb.enabled=true") == (
        "wandb.enabled: the package wandb is not installed; pip install wandb, or set it to false"
    )
