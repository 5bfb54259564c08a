"""The ELC-BERT encoder: plain PyTorch, free of training and distributed code."""

from elc_bert.model.flops import flops_per_token
from elc_bert.model.masked_lm import ElcBertForMaskedLM

__all__ = ["ElcBertForMaskedLM", "flops_per_token"]
