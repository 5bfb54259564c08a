"""The ELC-BERT model in plain PyTorch, without training or distributed code."""

from elc_bert.model.flops import flops_per_token
from elc_bert.model.layers import use_kernels
from elc_bert.model.masked_lm import ElcBertForMaskedLM

__all__ = ["ElcBertForMaskedLM", "flops_per_token", "use_kernels"]
