"""A linear layer that is told what to compute with."""

from torch import Tensor, nn

from elc_bert.kernels import Kernels


class Linear(nn.Linear):
    """``torch.nn.Linear`` whose product is taken by the model's kernels."""

    def forward(self, x: Tensor, kernels: Kernels) -> Tensor:  # type: ignore[override]
        """``[..., m] -> [..., n]``"""
        return kernels.linear(x, self.weight, self.bias)
