"""The model's costly operations: their plain definitions, and fast paths that can replace them."""

from elc_bert.kernels.dispatch import Choice, kernels_for
from elc_bert.kernels.reference import AttentionInputs, Kernels, Mixing

__all__ = ["AttentionInputs", "Choice", "Kernels", "Mixing", "kernels_for"]
