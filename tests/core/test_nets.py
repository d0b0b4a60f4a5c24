from __future__ import annotations

import gc
import weakref
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor

from bitagent_cli.bench.kernels import KernelCount
from stages.core import nets
from tests.core import literal
from tests.core.helpers import scramble


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(found: Tensor, wanted: object, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(found.detach().double().numpy(), np.asarray(wanted), rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------------------- layers


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_mlp_is_linear_norm_silu_blocks(layers: int) -> None:
    net = nets.MLP(5, 3, 7, layers)
    scramble(net)
    x = random(4, 5)
    w = literal.weights(net)
    close(net(x), [literal.mlp(w, row) for row in x.double().numpy()])


def test_mlp_can_start_at_zero() -> None:
    assert not nets.MLP(5, 3, 7, 2, zero_out=True)(random(4, 5)).any()


def test_norm_gru_cell() -> None:
    gru = nets.NormGRU(5, 6)
    scramble(gru)
    x, h = random(4, 5), random(4, 6, seed=1)
    w = literal.weights(gru)
    wanted = [literal.norm_gru(w, a, b) for a, b in zip(x.double().numpy(), h.double().numpy(), strict=True)]
    close(gru(x, h), wanted)


def test_norm_gru_scan_steps_in_order_and_restarts_where_told() -> None:
    gru = nets.NormGRU(5, 6)
    scramble(gru)
    x, h, h_reset = random(3, 7, 5), random(3, 6, seed=1), random(3, 6, seed=2)
    reset = torch.zeros(3, 7, dtype=torch.bool)
    reset[0, 0] = reset[1, 4] = reset[2, 2] = reset[2, 3] = True
    w = literal.weights(gru)
    wanted = np.zeros((3, 7, 6))
    for b in range(3):
        state = h[b].double().numpy()
        for t in range(7):
            if reset[b, t]:
                state = h_reset[b].double().numpy()
            state = literal.norm_gru(w, x[b, t].double().numpy(), state)
            wanted[b, t] = state
    close(gru.scan(x, h, reset, h_reset), wanted)


def test_image_encoder() -> None:
    encoder = nets.ImageEncoder(2)
    scramble(encoder)
    image = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = encoder(image)
    assert found.shape == (2, encoder.out_features)
    w = literal.weights(encoder)
    close(found, [literal.image_encoder(w, frame) for frame in image.numpy()], 1e-4)


def test_image_decoder() -> None:
    decoder = nets.ImageDecoder(5, 2)
    scramble(decoder)
    z = random(2, 5)
    w = literal.weights(decoder)
    close(decoder(z), [literal.image_decoder(w, row) for row in z.double().numpy()], 1e-4)


def test_squared_error_of_decoded_frames() -> None:
    decoder = nets.ImageDecoder(5, 2)
    scramble(decoder)
    z = random(2, 5)
    image = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    w = literal.weights(decoder)
    decoded = np.array([literal.image_decoder(w, row) for row in z.double().numpy()])
    wanted = ((decoded - (image.numpy() / 255.0 - 0.5)) ** 2).sum() / 2
    for target in (image, nets.normalize_image(image)):
        close(decoder.squared_error(z, target), wanted)


def test_pixels_survive_the_round_trip() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).expand(3, 256)
    normal = nets.normalize_image(pixels)
    close(normal[0], np.arange(256) / 255.0 - 0.5, 1e-6)
    assert torch.equal(nets.to_uint8(normal), pixels)
    assert nets.normalize_image(normal) is normal, "a float image is normalised already"
    assert torch.equal(nets.to_uint8(torch.tensor([-7.0, 7.0])), torch.tensor([0, 255], dtype=torch.uint8))


# ---------------------------------------------------------------------------- categoricals


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5])
def test_unimix(share: float) -> None:
    logits = 6 * random(4, 3, 5)
    probs = nets.unimix_log_probs(logits, share).exp()
    close(probs, [literal.unimix(x, share) for x in logits.double().numpy()])
    close(probs.sum(-1), np.ones((4, 3)))
    assert (probs >= share / 5 * (1 - 1e-5)).all()


def test_unimix_of_half_precision_logits_is_float32() -> None:
    assert nets.unimix_log_probs(random(2, 3, 5).bfloat16(), 0.01).dtype == torch.float32


def test_sample_is_where_the_distribution_function_passes_the_noise() -> None:
    log_probs = nets.unimix_log_probs(2 * random(50, 3, 5), 0.01)
    uniform = torch.rand(50, 3, generator=torch.Generator().manual_seed(1))
    probs = log_probs.double().exp().numpy()
    wanted = [literal.one_hot(p, u) for p, u in zip(probs, uniform.double().numpy(), strict=True)]
    close(nets.sample_one_hot(log_probs, uniform), wanted)


def test_sample_without_noise_is_the_mode() -> None:
    log_probs = nets.unimix_log_probs(2 * random(50, 3, 5), 0.01)
    close(nets.sample_one_hot(log_probs, None), [literal.one_hot(p) for p in log_probs.double().exp().numpy()])


def test_samples_follow_the_probabilities() -> None:
    log_probs = nets.unimix_log_probs(random(3, 5), 0.01)
    uniform = torch.rand(40_000, 3, generator=torch.Generator().manual_seed(0))
    found = nets.sample_one_hot(log_probs.expand(40_000, -1, -1), uniform).mean(0)
    close(found, log_probs.exp().flatten(), 0.015)


@pytest.mark.parametrize("extreme", [0.0, 1.0 - 2**-24])
def test_sample_survives_the_ends_of_the_unit_interval(extreme: float) -> None:
    log_probs = nets.unimix_log_probs(random(2, 3, 5), 0.01)
    sample = nets.sample_one_hot(log_probs, torch.full((2, 3), extreme)).unflatten(-1, (3, 5))
    assert (sample[..., 0 if extreme == 0.0 else 4] == 1).all() and (sample.sum(-1) == 1).all()


@pytest.mark.parametrize("noisy", [False, True])
def test_sample_passes_the_gradient_of_the_probabilities(noisy: bool) -> None:
    """Straight-through: d(v · sample)/d logit_k = p_k (v_k - Σ_j p_j v_j), without unimix."""
    logits = random(2, 3, 5).requires_grad_()
    v = random(2, 15, seed=1)
    uniform = torch.rand(2, 3, generator=torch.Generator().manual_seed(2)) if noisy else None
    (nets.sample_one_hot(nets.unimix_log_probs(logits, 0.0), uniform) * v).sum().backward()
    p, u = literal.softmax(logits.detach().double().numpy()), v.double().numpy().reshape(2, 3, 5)
    wanted = p * (u - (p * u).sum(-1, keepdims=True))
    assert logits.grad is not None
    close(logits.grad, wanted)


def test_categorical_kl() -> None:
    p, q = (nets.unimix_log_probs(3 * random(4, 2, 3, 5, seed=i), 0.01) for i in (0, 1))
    wanted = [
        [literal.kl(a, b) for a, b in zip(x, y, strict=True)]
        for x, y in zip(p.double().exp().numpy(), q.double().exp().numpy(), strict=True)
    ]
    found = nets.categorical_kl(p, q)
    assert found.shape == (4, 2) and (found > 0).all()
    close(found, wanted)
    assert not nets.categorical_kl(p, p).any()


# ---------------------------------------------------------------------------- loops


def looped(repeat: bool, steps: int, dtype: torch.dtype, train: bool = True) -> list[Tensor]:
    """A recurrence with an MLP inside: its last state, the gradients of the parameters and of the input."""
    torch.manual_seed(0)
    body, cell = nets.MLP(5, 6, 7, 1), nets.NormGRU(6, 4)
    for module in (body, cell):
        scramble(module)
        module.requires_grad_(train)
    x = torch.randn(3, 5).requires_grad_()
    h = torch.zeros(3, 4)
    with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
        projected = cell.inp(torch.ones(3, 6))
        with nets.unrolled(body, cell) if repeat else nullcontext():
            for _ in range(steps):
                h = cell.cell(projected + cell.rec(body(x + h.sum())[:, :4]), h)
    h.float().square().sum().backward()
    assert x.grad is not None
    found = [h.detach(), x.grad, *(p.grad for m in (body, cell) for p in m.parameters() if p.grad is not None)]
    assert len(found) == (2 + 13 if train else 2)
    return found


@pytest.mark.parametrize("train", [True, False])
def test_what_a_loop_repeats_gives_the_same_states_and_gradients(train: bool) -> None:
    for one, other in zip(*(looped(on, 5, torch.float32, train) for on in (True, False)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    for one, other in zip(*(looped(on, 3, torch.bfloat16, train) for on in (True, False)), strict=True):
        assert (one - other).norm() < 0.05 * other.norm().clamp(min=1e-3)


def test_a_loops_weights_are_cast_and_get_their_gradient_once() -> None:
    """Each step more adds a product forward and one backward for every map, and no cast of weights."""

    def counted(steps: int) -> dict[str, int]:
        with KernelCount() as counter:
            looped(True, steps, torch.float32)
        return counter.found

    few, many = counted(3), counted(8)
    products = ("aten::mm", "aten::addmm")
    # Two maps of the body, and the recurrent one twice; the first step's state asks for no gradient.
    assert sum(many[k] - few[k] for k in products) == 5 * 2 * 4
    assert many["aten::native_layer_norm_backward"] - few["aten::native_layer_norm_backward"] == 5 * 2


def test_nothing_of_a_loop_is_kept() -> None:
    """Weights cast for a loop are freed with it: a ring through the graph once kept 10 MB of every update."""
    freed = []
    gc.disable()
    try:
        for layer in (nets.Linear(3, 3), nets.LayerNorm(3)):
            with nets.unrolled(layer):
                assert layer.repeated is not None
                weakref.finalize(layer.repeated, freed.append, layer)
                out = layer(layer(torch.ones(2, 3)))
            out.sum().backward()
            del out
        assert len(freed) == 2
    finally:
        gc.enable()


def test_after_a_loop_and_in_one_inside_it_modules_are_as_before() -> None:
    layer = nets.Linear(2, 2)
    with nets.unrolled(layer):
        outer = layer.repeated
        with nets.unrolled(layer):
            assert layer.repeated is outer is not None
        assert layer.repeated is outer
    assert layer.repeated is None
    with pytest.raises(ZeroDivisionError), nets.unrolled(layer):
        _ = 1 / 0
    assert layer.repeated is None
