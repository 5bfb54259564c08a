"""The fastest matrix product of a device."""

import time
from collections.abc import Callable
from typing import Any

import torch
from training_step import DTYPES, synchronize

from elc_bert.config import ModelConfig


class Peak:
    """Speeds of matrix products, the best of all times they were measured.

    Args:
        config: whose weights are multiplied.
        rows: of the activations that they are multiplied with.
        predicted: rows that go through the head.
        precision: on a CPU fp32 is measured too.
    """

    def __init__(self, config: ModelConfig, rows: int, predicted: int, precision: str, device: torch.device):
        self.device = device
        self.flops: dict[str, float] = {}
        self._products: dict[str, tuple[float, Callable[[], Any]]] = {}
        for each in dict.fromkeys([*(["fp32"] if device.type == "cpu" else []), precision]):
            for name, product in matrix_products(config, rows, predicted, DTYPES[each], device).items():
                self._products[f"{each} {name}"] = product

    def measure(self) -> None:
        """Each product once more; from the second time on only those that may be the best."""
        for name, (operations, product) in self._products.items():
            best = max(self.flops.values(), default=0.0)
            if self.flops.get(name, best) < 0.7 * best:
                continue
            for _ in range(3):
                synchronize(self.device)
                start = time.perf_counter()
                product()
                synchronize(self.device)
                speed = operations / (time.perf_counter() - start)
                self.flops[name] = max(speed, self.flops.get(name, 0.0))
                if speed < 0.2 * best:
                    break

    @property
    def best(self) -> tuple[str, float]:
        return max(self.flops.items(), key=lambda item: item[1])


def matrix_products(
    config: ModelConfig, rows: int, predicted: int, dtype: torch.dtype, device: torch.device
) -> dict[str, tuple[float, Callable[[], Any]]]:
    """Operations, and what does them: of square matrices, and of the model's weights with activations."""
    d, m = config.hidden_size, config.intermediate_size
    squares = (4096, 8192) if device.type == "cuda" else (256, 512, 1024)
    shapes = {f"{size} square": (size, size, size) for size in squares}
    shapes |= {
        "query and key": (rows, d, 2 * d),
        "attention output": (rows, d, d),
        "feed-forward in": (rows, d, 2 * m),
        "feed-forward out": (rows, m, d),
        "head": (max(1, predicted), d, config.vocab_size),
    }
    products = {}
    for name, (n, k, p) in shapes.items():
        a = torch.randn(n, k, device=device).to(dtype)
        b = torch.randn(p, k, device=device).to(dtype)
        result = torch.empty(n, p, device=device, dtype=dtype)
        products[name] = (2.0 * n * k * p, lambda a=a, b=b, result=result: torch.mm(a, b.t(), out=result))
    return products
