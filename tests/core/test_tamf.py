"""TAMF against Eq. 2-5 written out in float64."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.core.nets import unrolled
from stages.core.settings import ModelConfig
from stages.core.tamf import TAMF
from tests.core import literal
from tests.core.helpers import MODEL, scramble

E, S, TASK, Z = 9, 15, 10, 12


def make(layers: int = 2, *, enabled: bool = True, scrambled: bool = True) -> TAMF:
    torch.manual_seed(0)
    changes = {"fusion_layers": layers, "fusion": "tamf" if enabled else "sum"}
    fusion = TAMF(ModelConfig(**{**MODEL, **changes}), E)
    if scrambled:
        scramble(fusion)
    return fusion


def inputs(batch: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, E, generator=generator),
        torch.randn(batch, S, generator=generator),
        torch.randn(batch, TASK, generator=generator),
    )


def array(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def close(found: Tensor, wanted: object) -> None:
    np.testing.assert_allclose(array(found), np.asarray(wanted), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 3])
def test_equations_2_to_5(layers: int) -> None:
    fusion = make(layers)
    e, s, tau = inputs()
    w = literal.weights(fusion)
    rows = zip(array(e), array(s), array(tau), strict=True)
    wanted = [literal.tamf(w, a, b, c, layers) for a, b, c in rows]
    close(fusion(e, s, fusion.gates(tau)), wanted)


def test_every_layer_has_a_gate_of_its_own() -> None:
    fusion = make(3)
    _, _, tau = inputs()
    gates = fusion.gates(tau)
    assert gates.shape == (4, 3, 1)
    assert (gates > 0).all() and (gates < 1).all()
    w = literal.under(literal.weights(fusion), "allocator")
    close(gates, [[literal.gate(w, row, layer) for layer in range(3)] for row in array(tau)])
    with torch.no_grad():
        fusion.allocator.w2[1] += 1.0
    changed = (fusion.gates(tau) != gates).flatten(2).any(-1)
    assert torch.equal(changed, torch.tensor([False, True, False]).expand(4, 3))


def test_gate_chooses_the_expert() -> None:
    """Eq. 3: p = 0 leaves the semantic expert alone, p = 1 the dynamic one."""
    fusion = make(layers=1)
    e, s, _ = inputs()
    start = fusion.fuse_semantic(e) + fusion.fuse_state(s)
    for p, expert in ((0.0, fusion.semantic[0]), (1.0, fusion.dynamic[0])):
        torch.testing.assert_close(fusion(e, s, torch.full((4, 1, 1), p)), start + expert(start))


def test_time_axis_is_only_another_batch_axis() -> None:
    fusion = make()
    e, s, tau = inputs(6)
    gates = fusion.gates(tau[:2])  # one prompt a sequence
    found = fusion(e.view(2, 3, E), s.view(2, 3, S), gates.unsqueeze(1))
    for b in range(2):
        for t in range(3):
            one = fusion(e.view(2, 3, E)[b, t], s.view(2, 3, S)[b, t], gates[b])
            torch.testing.assert_close(found[b, t], one)


def test_semantics_and_state_enter_at_one_scale() -> None:
    """At the start a unit-norm e and a one-hot s move z equally (Eq. 2)."""
    torch.manual_seed(0)
    fusion = TAMF(ModelConfig(**{**MODEL, "classes": 4, "categories": 16, "dim_z": 200, "fusion_layers": 1}), 64)
    e = torch.nn.functional.normalize(torch.randn(500, 64), dim=-1)
    s = torch.nn.functional.one_hot(torch.randint(16, (500, 4)), 16).flatten(1).float()
    semantic, state = e @ fusion.fuse_semantic.weight.T, s @ fusion.fuse_state.weight.T
    assert 0.9 < float(semantic.detach().std() / state.detach().std()) < 1.1


def test_layer_scale_starts_an_expert_small() -> None:
    fusion = make(layers=1, scrambled=False)
    scales = [p for name, p in fusion.named_parameters() if name.endswith(".scale")]
    assert len(scales) == 2 and all(bool((p == 0.1).all()) for p in scales)


def test_base_row_is_the_direct_sum_of_two_embeddings() -> None:
    """Table 2, base: no experts, and the task has no say."""
    fusion = make(enabled=False)
    e, s, tau = inputs()
    w = literal.weights(fusion)
    wanted = [
        w["fuse_semantic.weight"] @ a + w["fuse_semantic.bias"] + w["fuse_state.weight"] @ b
        for a, b in zip(array(e), array(s), strict=True)
    ]
    found = fusion(e, s, fusion.gates(tau))
    close(found, wanted)
    assert torch.equal(found, fusion(e, s, fusion.gates(-tau)))
    trained = {name.split(".")[0] for name, p in fusion.named_parameters() if p.requires_grad}
    assert trained == {"fuse_semantic", "fuse_state"}


def test_inside_a_loop_the_experts_are_folded_and_give_the_same() -> None:
    """Values, and gradients of inputs, gates and every parameter."""
    found = []
    for fold in (True, False):
        torch.manual_seed(0)
        fusion = TAMF(ModelConfig(**{**MODEL, "fusion_layers": 3}), 6)
        scramble(fusion)
        e, s = torch.randn(4, 6).requires_grad_(), torch.rand(4, MODEL["classes"] * MODEL["categories"])
        gates = fusion.gates(torch.randn(4, MODEL["dim_task"]))
        with unrolled(fusion) if fold else nullcontext():
            assert (fusion.repeated is not None) == fold
            z = fusion(e, s, gates)
            z = fusion(e + z.mean(), s, gates)
        z.square().sum().backward()
        found.append([z.detach(), e.grad, *(p.grad for p in fusion.parameters())])
    assert len(found[0]) > 30
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
