"""The model agrees with the reference implementation's golden values; further properties of it."""

import copy
import pickle
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from elc_bert.config.schema import ModelConfig
from elc_bert.kernels import Kernels, kernels_for
from elc_bert.model import ElcBertForMaskedLM, flops_per_token, use_kernels
from elc_bert.model.layers import KernelUser
from tests.support.golden_model import VARIANTS, GoldenModel
from tests.support.tensors import relative_error

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def loaded(golden: GoldenModel, device: str = "cpu") -> ElcBertForMaskedLM:
    model = ElcBertForMaskedLM(golden.config).to(device)
    model.load_state_dict(golden.parameters)
    return model


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kernels", ["plain", "fused"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_matches_the_reference_in_hidden_states_loss_and_every_gradient(
    variant, checkpointing, kernels, device
):
    golden = GoldenModel(variant)
    model = loaded(golden, device)
    model.encoder.activation_checkpointing = checkpointing
    use_kernels(model, kernels)
    ids, mask = golden.input_ids.to(device), golden.attention_mask.to(device)

    embedded, _ = model.encoder.embedding(ids)
    hidden = model.encoder(ids, mask)
    logits = model(ids, mask, golden.positions.to(device))
    loss = F.cross_entropy(logits, golden.targets.to(device))
    loss.backward()

    assert (embedded.cpu() - golden.embedding_output).abs().max() <= 2e-5
    assert (hidden.cpu() - golden.final_hidden).abs().max() <= 2e-5
    assert (logits.cpu() - golden.logits).abs().max() <= 2e-5
    assert abs(loss.item() - golden.loss.item()) <= 1e-5
    gradients = {name: p.grad.cpu() for name, p in model.named_parameters()}
    assert gradients.keys() == golden.gradients.keys()
    for name, expected in golden.gradients.items():
        assert relative_error(gradients[name], expected) <= 1e-4, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_changes_nothing(variant):
    golden = GoldenModel(variant)
    model = loaded(golden)
    mask = torch.ones(4, 40, dtype=torch.bool)
    mask[:, 30:] = False
    garbled = golden.input_ids.clone()
    garbled[:, 30:] = 7

    hidden = model.encoder(golden.input_ids, mask)[:, :30]

    torch.testing.assert_close(model.encoder(garbled, mask)[:, :30], hidden, rtol=0, atol=0)
    alone = model.encoder(golden.input_ids[:, :30], mask[:, :30])
    torch.testing.assert_close(alone, hidden, rtol=1e-5, atol=1e-5)


def test_a_sequence_of_padding_only_gives_finite_gradients():
    golden = GoldenModel("zero")
    model = loaded(golden)
    mask = golden.attention_mask.clone()
    mask[0] = False
    model.encoder(golden.input_ids, mask).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.encoder.parameters())


def test_no_masked_position_gives_no_logits():
    golden = GoldenModel("zero")
    logits = loaded(golden)(golden.input_ids, golden.attention_mask, torch.zeros(0, dtype=torch.int64))
    assert logits.shape == (0, 96)


def test_longer_input_than_the_position_range_is_allowed():
    golden = GoldenModel("zero")
    ids = golden.input_ids.repeat(1, 4)
    hidden = loaded(golden).encoder(ids, torch.ones_like(ids, dtype=torch.bool))
    assert hidden.shape == (4, 160, 24)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_initial_mixture_is_that_of_the_variant(variant):
    model = ElcBertForMaskedLM(ModelConfig(variant=variant, num_hidden_layers=3, hidden_size=12))
    weights = model.encoder.layer_weights()
    start = torch.tensor([0.0, 0.0, 1.0 if variant == "base" else 0.0])
    torch.testing.assert_close(weights["layer_03"], torch.softmax(start, dim=0))
    assert weights.get("output", torch.empty(0)).numel() == (4 if variant == "weighted_output" else 0)


def test_initialization():
    config = ModelConfig(hidden_size=120, intermediate_size=160, num_hidden_layers=3, vocab_size=500)
    torch.manual_seed(0)
    model = ElcBertForMaskedLM(config)
    std = (2 / (5 * 120)) ** 0.5
    # Truncating a normal distribution at two standard deviations leaves 0.88 of its deviation.
    for layer, module in enumerate(model.encoder.layers):
        attention = module.attention.query_key
        assert attention.weight.abs().max() <= 2 * std
        assert attention.weight.std().item() == pytest.approx(0.88 * std, rel=0.03)
        assert attention.bias.abs().max() == 0
        expected = 0.88 * std * (1 / (2 * (1 + layer))) ** 0.5
        assert module.feed_forward.expand.weight.std().item() == pytest.approx(expected, rel=0.03)
        assert module.feed_forward.contract.weight.std().item() == pytest.approx(expected, rel=0.03)
    assert model.head.decoder.weight is model.encoder.embedding.word.weight


@pytest.mark.parametrize(
    ("size", "millions"),
    [
        ({}, 23.8),
        (
            {"vocab_size": 16384, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 2048},
            98.2,
        ),
    ],
    ids=["small", "base"],
)
def test_published_sizes(size, millions):
    assert ElcBertForMaskedLM(ModelConfig(**size)).num_parameters() / 1e6 == pytest.approx(millions, abs=0.1)


def test_flops_of_the_small_model():
    # Written out by hand for T = 128 and 15 % masked.
    layers = 6 * 12 * (4 * 384**2 + 3 * 384 * 1024)
    head = 6 * 0.15 * (384**2 + 384 * 6144)
    attention = 3 * 12 * (4 * 128 * 384 + 4 * 63 * 384)
    assert flops_per_token(ModelConfig(), 128, 0.15) == layers + head + attention


def test_model_files_import_neither_deepspeed_nor_distributed():
    from elc_bert import model

    sources = [m.__file__ for name, m in sys.modules.items() if name.startswith(model.__name__)]
    assert len(sources) > 3
    for source in sources:
        text = Path(source).read_text(encoding="utf-8")
        assert "deepspeed" not in text.lower()
        assert "torch.distributed" not in text


def test_dropout_is_off_in_evaluation_and_on_in_training():
    golden = GoldenModel("zero")
    config = golden.config.model_copy(
        update={"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
    )
    model = ElcBertForMaskedLM(config)
    model.load_state_dict(golden.parameters)
    quiet = model.eval().encoder(golden.input_ids, golden.attention_mask)
    assert (quiet - golden.final_hidden).abs().max() <= 2e-5
    noisy = model.train().encoder(golden.input_ids, golden.attention_mask)
    assert (noisy - golden.final_hidden).abs().max() > 0.1


class TestKernels:
    def test_a_new_model_uses_the_fast_paths_of_its_device(self):
        model = ElcBertForMaskedLM(GoldenModel("zero").config)
        assert model.kernels == "auto"
        users = [module for module in model.modules() if isinstance(module, KernelUser)]
        auto = kernels_for("cpu", "auto")
        assert all(user.kernels_for_input(torch.zeros(1)) is auto for user in users)

    def test_use_kernels_reaches_every_module_and_no_weights(self):
        class Counting(Kernels):
            calls = 0

            def linear(self, x, weight, bias=None):
                self.calls += 1
                return super().linear(x, weight, bias)

        golden, kernels = GoldenModel("weighted_output"), Counting()
        model = loaded(golden)
        names = list(model.state_dict())
        use_kernels(model, kernels)
        model(golden.input_ids, golden.attention_mask, golden.positions)
        assert model.kernels is kernels
        # Each layer has four products with the query and key matrix (also of positions), value and output
        # matrix, and two in the feed-forward block; the head has two.
        assert kernels.calls == 6 * golden.config.num_hidden_layers + 2
        assert list(model.state_dict()) == names

    def test_copies_and_pickles_keep_the_kernels(self):
        golden = GoldenModel("zero")
        model = loaded(golden)
        use_kernels(model, "plain")
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert copied.kernels == "plain"
            arguments = golden.input_ids, golden.attention_mask, golden.positions
            assert torch.equal(copied(*arguments), model(*arguments))
