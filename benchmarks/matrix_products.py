"""Compare matrix products of the small model by OpenBLAS and by PyTorch; see ``--help``."""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from optimizer import SIZES
from reporting import add_json, report_to_user
from torch import Tensor

from elc_bert.kernels.cpu.products import multiply, sgemm_address
from elc_bert.utils.errors import UserError
from elc_bert.utils.machine import keep_freed_memory
from elc_bert.utils.options import positive_int


@dataclass(frozen=True)
class Report:
    """Median operations per second of each product, by OpenBLAS and by PyTorch."""

    ours: dict[str, float]
    pytorch: dict[str, float]

    def lines(self) -> list[str]:
        """Return the lines of the report."""
        lines = [f"{'GFLOP/s':32}{'fast path':>10}{'PyTorch':>10}{'ratio':>8}"]
        return lines + [
            f"{name:32}{self.ours[name] / 1e9:10.1f}{self.pytorch[name] / 1e9:10.1f}"
            f"{self.ours[name] / self.pytorch[name]:8.2f}"
            for name in self.ours
        ]


def products(size: str, rows: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the products of every kind of layer: forward, and backward to activations and weights."""
    config = SIZES[size]
    d, m = config.hidden_size, config.intermediate_size
    found = {}
    for name, inner, outer in (
        ("query and key", d, 2 * d),
        ("value, output", d, d),
        ("feed-forward in", d, 2 * m),
        ("feed-forward out", m, d),
    ):
        x, weight, gradient = torch.randn(rows, inner), torch.randn(outer, inner), torch.randn(rows, outer)
        found[f"{name}, forward"] = (x, weight.T)
        found[f"{name}, to activations"] = (gradient, weight)
        found[f"{name}, to weights"] = (gradient.T, x)
    return found


def operations_per_second(a: Tensor, b: Tensor, product: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Return the floating-point operations per second of a product of two matrices."""
    repeats = 5
    product(a, b)
    start = time.perf_counter()
    for _ in range(repeats):
        product(a, b)
    return 2.0 * repeats * a.shape[0] * a.shape[1] * b.shape[1] / (time.perf_counter() - start)


def benchmark(arguments: argparse.Namespace) -> Report:
    """Measure both ways of multiplying, in turn."""
    if sgemm_address() is None:
        raise UserError("this processor's fast path is PyTorch's own product; there is nothing to compare")
    keep_freed_memory()
    shapes = products(arguments.size, arguments.rows)
    speeds: dict[Callable[[Tensor, Tensor], Tensor], dict[str, list[float]]]
    speeds = {multiply: {name: [] for name in shapes}, torch.mm: {name: [] for name in shapes}}
    for _ in range(arguments.rounds):
        for name, (a, b) in shapes.items():
            for product, of_product in speeds.items():
                of_product[name].append(operations_per_second(a, b, product))
    ours, pytorch = (
        {name: statistics.median(each) for name, each in of_product.items()} for of_product in speeds.values()
    )
    return Report(ours, pytorch)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="matrix_products.py",
        description="Compare matrix products on a CPU, in turn: medians over the rounds.",
        epilog="example: python benchmarks/matrix_products.py --size base",
    )
    option = parser.add_argument
    option("--size", choices=SIZES, default="small", help="size of the model (default: small)")
    option("--rows", type=positive_int, default=4096, metavar="N", help="activation rows (default: 4096)")
    option("--rounds", type=positive_int, default=7, metavar="N", help="number of rounds (default: 7)")
    add_json(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(report_to_user("matrix_products.py", parse_arguments(sys.argv[1:]), benchmark))
