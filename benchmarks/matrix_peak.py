"""Speed of the fastest matrix product of a device."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from training_step import DTYPES, synchronize

from elc_bert.config.schema import ModelConfig

SECONDS = 0.2


class Peak:
    """Sustained speeds of matrix products, each repeated for a while as in a training step.

    Args:
        config: Model whose weights are multiplied.
        rows: Rows of the activations that they are multiplied with.
        predicted: Number of these rows that go through the head.
        precision: Precision to measure. On a CPU, fp32 is measured as well.
        device: Device to measure.
    """

    def __init__(
        self, config: ModelConfig, rows: int, predicted: int, precision: str, device: torch.device
    ) -> None:
        self.device = device
        self.burst = 0.0
        """Operations per second of the fastest single product."""
        self._measured: dict[str, list[float]] = {}
        self._products: dict[str, tuple[float, Callable[[], Any]]] = {}
        for each in dict.fromkeys([*(["fp32"] if device.type == "cpu" else []), precision]):
            for name, product in matrix_products(config, rows, predicted, DTYPES[each], device).items():
                self._products[f"{each} {name}"] = product

    @property
    def flops(self) -> dict[str, float]:
        """Operations per second of each product, as medians of all measurements."""
        return {name: statistics.median(speeds) for name, speeds in self._measured.items()}

    @property
    def best(self) -> tuple[str, float]:
        """Name and speed of the fastest product."""
        return max(self.flops.items(), key=lambda item: item[1])

    def measure(self) -> None:
        """Measure each product for a fifth of a second. Later calls skip much slower ones than the best."""
        for name, (operations, product) in self._products.items():
            best = max(self.flops.values(), default=0.0)
            if self.flops.get(name, best) < 0.7 * best:
                continue
            once = self._seconds(product, 1)  # left out of the speed, because the first call may allocate
            repeats = max(1, round(SECONDS / once))
            self._measured.setdefault(name, []).append(operations * repeats / self._seconds(product, repeats))
            self.burst = max(self.burst, operations / min(once, self._seconds(product, 1)))

    def _seconds(self, product: Callable[[], Any], repeats: int) -> float:
        synchronize(self.device)
        start = time.perf_counter()
        for _ in range(repeats):
            product()
        synchronize(self.device)
        return time.perf_counter() - start


def matrix_products(
    config: ModelConfig, rows: int, predicted: int, dtype: torch.dtype, device: torch.device
) -> dict[str, tuple[float, Callable[[], Any]]]:
    """Return products of square matrices and of the model: number of operations and function, by name."""
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
