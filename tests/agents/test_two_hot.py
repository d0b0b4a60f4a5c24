"""Two-hot regression against its formula written out in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.agents import two_hot
from tests.core import literal
from tests.core.helpers import scramble
from tests.core.test_nets import close, random


@settings(deadline=None)
@given(st.floats(-1e4, 1e4))
def test_symlog_and_its_inverse(x: float) -> None:
    value = torch.tensor(x, dtype=torch.float64)
    wanted = np.sign(x) * np.log(1 + abs(x))
    assert two_hot.symlog(value).item() == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    assert two_hot.symexp(two_hot.symlog(value)).item() == pytest.approx(x, rel=1e-9, abs=1e-12)


def literal_two_hot(x: float, bins: np.ndarray) -> np.ndarray:
    """DreamerV3: weight on each neighbour in proportion to the distance from the other."""
    code = np.zeros(len(bins))
    x = min(max(x, bins[0]), bins[-1])
    below = max(i for i in range(len(bins)) if bins[i] <= x)
    if below == len(bins) - 1:
        code[below] = 1.0
        return code
    share = (x - bins[below]) / (bins[below + 1] - bins[below])
    code[below], code[below + 1] = 1.0 - share, share
    return code


@settings(deadline=None)
@given(st.floats(-4, 4, width=32))
def test_two_hot(x: float) -> None:
    bins = torch.linspace(-3, 3, 7)
    code = two_hot.two_hot(torch.tensor([x]), bins)[0]
    close(code, literal_two_hot(x, bins.double().numpy()))
    assert float((code * bins).sum()) == pytest.approx(min(max(x, -3.0), 3.0), abs=1e-5)


def test_two_hot_on_a_bin_and_outside() -> None:
    bins = torch.linspace(-1, 1, 3)
    code = two_hot.two_hot(torch.tensor([[-9.0, -1.0, 0.0], [0.25, 1.0, 9.0]]), bins)
    close(code, [[[1, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 0.75, 0.25], [0, 0, 1], [0, 0, 1]]])


def test_two_hot_head() -> None:
    head = two_hot.TwoHotHead(4, 6, 1, bins=11, limit=3.0)
    close(head.mean(head(random(2, 4))), np.zeros(2))  # a new critic predicts zero
    scramble(head)
    x, target = random(5, 4), 3 * random(5, seed=1)
    logits = head(x)
    bins = np.linspace(-3, 3, 11)
    values, losses = [], []
    for row, goal in zip(logits.detach().double().numpy(), target.double().numpy(), strict=True):
        p = literal.softmax(row)
        inner = float((p * bins).sum())
        values.append(np.sign(inner) * (np.exp(abs(inner)) - 1))
        code = literal_two_hot(float(np.sign(goal) * np.log(1 + abs(goal))), bins)
        losses.append(-(code * np.log(p)).sum())
    close(head.mean(logits), values, 1e-4)
    close(head.loss(logits, target), losses, 1e-4)


def test_two_hot_head_learns_a_return() -> None:
    torch.manual_seed(0)
    head = two_hot.TwoHotHead(2, 16, 1)
    optimizer = torch.optim.Adam(head.parameters(), 1e-2)
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    target = torch.tensor([-2.5, 40.0])
    for _ in range(300):
        optimizer.zero_grad()
        head.loss(head(x), target).sum().backward()
        optimizer.step()
    close(head.mean(head(x)), target, 0.02)
