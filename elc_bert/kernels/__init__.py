"""The model's costly parts: their plain definitions, and fast paths that stand in for them."""

from elc_bert.kernels.dispatch import Choice, kernels_for
from elc_bert.kernels.reference import Kernels, Mixing

__all__ = ["Choice", "Kernels", "Mixing", "kernels_for"]
