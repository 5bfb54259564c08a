"""Memory of a process that trains for many steps."""

import subprocess
import sys

import pytest
import torch

from elc_bert.config.schema import ModelConfig
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.model.masked_lm import head_rows

TRAIN = """
import random, sys
import psutil, torch
from elc_bert.config.schema import ModelConfig
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.model.loss import masked_lm_loss

torch.manual_seed(0)
random.seed(0)
sizes = dict(vocab_size=4096, hidden_size=64, num_hidden_layers=1, num_attention_heads=2)
config = ModelConfig(**sizes, intermediate_size=64, max_position_embeddings=64, position_bucket_size=8)
model = ElcBertForMaskedLM(config).to(getattr(torch, sys.argv[1]))
ids, mask = torch.randint(7, 4096, (64, 64)), torch.ones(64, 64, dtype=torch.bool)
for step in range(301):
    n = random.randint(400, 800)
    logits = model(ids, mask, torch.randperm(4096)[:n])
    loss, _ = masked_lm_loss(logits, torch.randint(7, 4096, (n,)), kernels=model.kernels)
    loss.backward()
    model.zero_grad()
    if step % 100 == 0:
        print(psutil.Process().memory_info().rss >> 20)
"""
"""Program that takes steps with varying numbers of predicted tokens and prints its resident MiB."""


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_memory_does_not_grow_with_the_number_of_steps(dtype):
    done = subprocess.run([sys.executable, "-c", TRAIN, dtype], capture_output=True, text=True, check=True)
    _, after_100, after_200, after_300 = map(int, done.stdout.split())
    # Without the fix, bfloat16 grows by about 200 MiB per 100 steps.
    assert max(after_200, after_300) - after_100 < 40


@pytest.mark.parametrize(("predicted", "on_cpu"), [(0, 0), (1, 64), (64, 64), (65, 128), (600, 640)])
def test_on_a_cpu_the_head_computes_few_different_numbers_of_rows(predicted, on_cpu):
    assert head_rows(predicted, "cpu") == on_cpu
    assert head_rows(predicted, "cuda") == predicted


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65])
def test_the_padding_rows_change_neither_logits_nor_gradients(count):
    torch.manual_seed(count)
    sizes = {"vocab_size": 50, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = ElcBertForMaskedLM(ModelConfig(**sizes, intermediate_size=8)).double().eval()
    ids, mask = torch.randint(7, 50, (4, 20)), torch.ones(4, 20, dtype=torch.bool)
    positions = torch.randperm(80)[:count]
    expected = model.head(model.encoder(ids, mask).flatten(0, 1)[positions])
    weight = torch.randn_like(expected)
    gradients = torch.autograd.grad((expected * weight).sum(), list(model.parameters()))
    logits = model(ids, mask, positions)
    assert logits.shape == (count, 50)
    assert (logits - expected).abs().sum() < 1e-12
    for found, exact in zip(
        torch.autograd.grad((logits * weight).sum(), list(model.parameters())), gradients, strict=True
    ):
        assert (found - exact).abs().max() < 1e-12
