"""An export needs a tokenizer whose ids all lie in the model's vocabulary."""

import pytest

from elc_bert.config.schema import ModelConfig
from elc_bert.hub.export import export
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.model.loaded import LoadedModel
from elc_bert.utils.errors import UserError

SIZES = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}


@pytest.mark.parametrize("size", [511, 512])
def test_a_tokenizer_may_not_have_more_subwords_than_the_model(tiny_tokenizer, tmp_path, size):
    loaded = LoadedModel(ElcBertForMaskedLM(ModelConfig(vocab_size=size, **SIZES)).eval(), tiny_tokenizer)
    if size == 512:
        export(loaded, tiny_tokenizer, tmp_path / "export", facts={})
        assert (tmp_path / "export" / "model.safetensors").is_file()
        return
    with pytest.raises(UserError, match=r"tokenizer\.json: .*\b512\b.*\b511\b"):
        export(loaded, tiny_tokenizer, tmp_path / "export", facts={})
    assert not (tmp_path / "export").exists()
