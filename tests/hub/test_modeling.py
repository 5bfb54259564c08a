"""Inputs, dropout and conversion of the model code that is exported."""

import importlib
import math

import pytest
import torch
import torch.nn.functional as F

from elc_bert.config.schema import ModelConfig
from elc_bert.model import ElcBertForMaskedLM, use_kernels

transformers = pytest.importorskip("transformers", reason="needs transformers (extra hf)")
SIZES = {
    "vocab_size": 97,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 24,
    "position_bucket_size": 8,
}


def exported_model(head: str = "MaskedLM", **settings):
    """Return a model of the exported code with random weights."""
    code = importlib.import_module("elc_bert.hub.files.modeling_elc_bert")
    config = importlib.import_module("elc_bert.hub.files.configuration_elc_bert").ElcBertConfig
    torch.manual_seed(5)
    model = getattr(code, f"ElcBertFor{head}")(config(**{**SIZES, **settings}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def token_ids(batch: int, length: int) -> torch.Tensor:
    return torch.randint(7, 97, (batch, length), generator=torch.Generator().manual_seed(batch * length))


class TestAttentionMask:
    def test_a_mask_with_a_row_for_each_token_that_attends(self):
        model, ids = exported_model(), token_ids(2, 10)
        causal = torch.ones(10, 10).tril().expand(2, 10, 10)
        with torch.no_grad():
            logits = model(ids, causal).logits
            for length in (1, 4, 10):  # each token attends to those up to itself only
                alone = model(ids[:, :length], torch.ones(length, length).tril().expand(2, -1, -1)).logits
                assert (alone - logits[:, :length]).abs().max() < 1e-5
            assert (model(ids).logits - logits)[:, 0].abs().max() > 0.01

    def test_equal_rows_are_the_mask_of_the_tokens(self):
        model, ids = exported_model(), token_ids(2, 10)
        mask = (torch.arange(10) < torch.tensor([[6], [10]])).long()
        with torch.no_grad():
            rows = model(ids, mask[:, None].expand(2, 10, 10)).logits
            assert (rows - model(ids, mask).logits).abs().max() < 1e-5

    @pytest.mark.parametrize("shape", [(2, 1, 1, 10), (2, 1, 10, 10), (2, 9), (10,), (2, 10, 9)])
    def test_other_shapes_are_refused(self, shape):
        with pytest.raises(ValueError, match=r"attention_mask.*\[2, 10\] or \[2, 10, 10\]"):
            exported_model()(token_ids(2, 10), torch.ones(shape))

    def test_a_mask_to_be_added_to_the_scores_is_refused(self):
        mask = torch.zeros(2, 10).masked_fill(torch.arange(10) > 7, -math.inf)
        with pytest.raises(ValueError, match="attention_mask: holds negative numbers"):
            exported_model()(token_ids(2, 10), mask)


HEADS = ["MaskedLM", "SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice"]


@pytest.mark.parametrize("head", HEADS)
def test_a_misspelt_keyword_argument_is_refused(head):
    ids = token_ids(2, 10)[None] if head == "MultipleChoice" else token_ids(2, 10)
    model = exported_model(head)
    model(ids, token_type_ids=torch.zeros_like(ids))  # passed by some tokenizers, and meaningless here
    with pytest.raises(TypeError, match="attention_masks"):
        model(ids, attention_masks=torch.ones_like(ids))
    with pytest.raises(TypeError, match="position_ids"):
        model.encoder(ids, position_ids=torch.zeros_like(ids))


class TestDropout:
    HIDDEN, ATTENTION = 0.25, 0.5
    # Per layer: relative embeddings, probabilities and output of attention, then the feed-forward.
    EXPECTED = (HIDDEN, *[ATTENTION, ATTENTION, ATTENTION, HIDDEN] * 2, HIDDEN)

    @pytest.fixture
    def probabilities(self, monkeypatch):
        applied = []
        dropout = F.dropout

        def record(x, p=0.5, training=True, inplace=False):
            applied.append(p)
            return dropout(x, p, training, inplace)

        monkeypatch.setattr(F, "dropout", record)
        return applied

    def test_in_the_exported_model(self, probabilities):
        dropout = {"hidden_dropout_prob": self.HIDDEN, "attention_probs_dropout_prob": self.ATTENTION}
        exported_model(**dropout).train()(token_ids(2, 10))
        assert tuple(probabilities) == self.EXPECTED

    def test_in_the_model_that_is_trained(self, probabilities):
        dropout = {"hidden_dropout_prob": self.HIDDEN, "attention_probs_dropout_prob": self.ATTENTION}
        model = ElcBertForMaskedLM(ModelConfig(**SIZES, **dropout)).train()
        use_kernels(model, "plain")
        model(token_ids(2, 10), torch.ones(2, 10, dtype=torch.bool), torch.arange(3))
        assert tuple(probabilities) == self.EXPECTED


@pytest.mark.parametrize("dynamo", [False, True], ids=["older exporter", "exporter of torch.export"])
@pytest.mark.filterwarnings("ignore")  # the exporters' own
def test_a_model_converted_to_onnx_computes_the_same_for_every_shape(dynamo, tmp_path):
    reason = "needs onnx, onnxscript and onnxruntime (extra dev)"
    pytest.importorskip("onnx", reason=reason)
    pytest.importorskip("onnxscript", reason=reason)
    runtime = pytest.importorskip("onnxruntime", reason=reason)
    names = ["input_ids", "attention_mask"]
    if dynamo:
        axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=512)}
        shapes = {"dynamic_shapes": dict.fromkeys(names, axes)}
    else:
        shapes = {"dynamic_axes": {name: {0: "batch", 1: "length"} for name in [*names, "logits"]}}
    model, path = exported_model(), tmp_path / "model.onnx"
    example = (token_ids(2, 30), torch.ones(2, 30, dtype=torch.long))
    torch.onnx.export(
        model,
        example,
        path,
        input_names=names,
        output_names=["logits"],
        dynamo=dynamo,
        verbose=False,
        **shapes,
    )
    session = runtime.InferenceSession(path)
    for batch, length in ((2, 30), (3, 11), (1, 60)):
        ids = token_ids(batch, length)
        mask = (torch.arange(length) < length - 3).long().expand(batch, -1)
        (logits,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        with torch.no_grad():
            assert (torch.from_numpy(logits) - model(ids, mask).logits).abs().max() < 1e-5
