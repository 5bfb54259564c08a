"""A model that is not finite is not exported, whichever weight it is."""

import pytest
import torch

from elc_bert.config.schema import ModelConfig
from elc_bert.hub.export import export
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.model.loaded import LoadedModel
from elc_bert.utils.errors import UserError

SIZES = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["encoder.embedding.word.weight", "head.decoder.bias"])
def test_one_number_that_is_not_finite_is_enough(tiny_tokenizer, tmp_path, name, value):
    model = ElcBertForMaskedLM(ModelConfig(vocab_size=512, **SIZES)).eval()
    with torch.no_grad():
        model.get_parameter(name).view(-1)[-1] = value
    with pytest.raises(UserError, match=rf"export: not written, because {name} .*NaN or infinite"):
        export(LoadedModel(model, tiny_tokenizer), tiny_tokenizer, tmp_path / "export", facts={})
    assert not (tmp_path / "export").exists()
