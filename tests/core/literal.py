"""The paper's equations, slow and literal: float64 NumPy, one vector at a time, from a module's raw weights.

Nothing here calls the code under test; the layout of a module's parameters is all they share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import erf
from torch import nn

Array = np.ndarray
Weights = Mapping[str, Array]


def weights(module: nn.Module) -> dict[str, Array]:
    """Every parameter and buffer of a module in float64."""
    return {name: tensor.detach().double().numpy() for name, tensor in module.state_dict().items()}


def under(w: Weights, name: str) -> dict[str, Array]:
    """The weights of the submodule `name`, without its prefix."""
    return {key.removeprefix(f"{name}."): value for key, value in w.items() if key.startswith(f"{name}.")}


# ---------------------------------------------------------------------------- layers


def sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def gelu(x: Array) -> Array:
    return 0.5 * x * (1.0 + erf(x / np.sqrt(2.0)))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def normalise(x: Array) -> Array:
    return x / np.linalg.norm(x)


def linear(w: Weights, x: Array) -> Array:
    return w["weight"] @ x + w.get("bias", 0.0)


def layer_norm(w: Weights, x: Array) -> Array:
    centred = x - x.mean()
    return centred / np.sqrt((centred**2).mean() + 1e-5) * w["weight"] + w["bias"]


def mlp(w: Weights, x: Array) -> Array:
    """Blocks of Linear, LayerNorm, SiLU and a last Linear, recognised by the rank of their weights."""
    numbers = sorted({int(key.split(".")[0]) for key in w})
    for number in numbers[:-1]:
        layer = under(w, str(number))
        x = linear(layer, x) if layer["weight"].ndim == 2 else silu(layer_norm(layer, x))
    return linear(under(w, str(numbers[-1])), x)


def norm_gru(w: Weights, x: Array, h: Array) -> Array:
    """The GRU of DreamerV2 and V3: one LayerNorm over the three gates, update gate biased by -1."""
    gates = layer_norm(under(w, "norm"), mlp(under(w, "inp"), x) + w["rec.weight"] @ h)
    reset, candidate, update = np.split(gates, 3)
    candidate = np.tanh(sigmoid(reset) * candidate)
    update = sigmoid(update - 1.0)
    return update * candidate + (1.0 - update) * h


def conv(w: Weights, x: Array, stride: int) -> Array:
    """Zero-padded by 1. x (I, H, W), weight (O, I, k, k) → (O, H', W')."""
    kernel, size = w["weight"], w["weight"].shape[-1]
    x = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    side = (x.shape[1] - size) // stride + 1
    out = np.zeros((len(kernel), side, side))
    for i in range(side):
        for j in range(side):
            patch = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
            out[:, i, j] = (kernel * patch).sum((1, 2, 3)) + w["bias"]
    return out


def pixel_shuffle(x: Array) -> Array:
    """(4 C, H, W) → (C, 2 H, 2 W): four channels become one 2 × 2 block of pixels."""
    out = np.zeros((len(x) // 4, 2 * x.shape[1], 2 * x.shape[2]))
    for channel in range(len(out)):
        for row in range(2):
            for column in range(2):
                out[channel, row::2, column::2] = x[4 * channel + 2 * row + column]
    return out


def image_encoder(w: Weights, image: Array) -> Array:
    """uint8 (3, 64, 64) → features."""
    x = image.astype(np.float64) / 255.0 - 0.5
    for number in (0, 2, 4, 6):
        x = silu(conv(under(w, str(number)), x, stride=2))
    return x.reshape(-1)


def image_decoder(w: Weights, z: Array) -> Array:
    """z → image (3, 64, 64) around 0."""
    x = linear(under(w, "stem"), z).reshape(-1, 4, 4)
    for number in (0, 3, 6):
        x = silu(pixel_shuffle(conv(under(w, f"convs.{number}"), x, stride=1)))
    return pixel_shuffle(conv(under(w, "convs.9"), x, stride=1))


# ---------------------------------------------------------------------------- categoricals


def unimix(logits: Array, share: float) -> Array:
    """Probabilities of (C, K) logits with `share` of the uniform distribution mixed in."""
    return (1.0 - share) * softmax(logits) + share / logits.shape[-1]


def kl(p: Array, q: Array) -> float:
    """Σ over C variables and K classes of p log(p / q), for probabilities (C, K)."""
    total = 0.0
    for row_p, row_q in zip(p, q, strict=True):
        for a, b in zip(row_p, row_q, strict=True):
            total += a * (np.log(a) - np.log(b))
    return total


def one_hot(probs: Array, uniform: Array | None = None) -> Array:
    """(C, K) → (C·K,): the mode, or the first class whose distribution function exceeds u (C,)."""
    out = np.zeros_like(probs)
    for variable, p in enumerate(probs):
        if uniform is None:
            drawn = int(p.argmax())
        else:
            drawn = next((k for k in range(len(p) - 1) if p[: k + 1].sum() > uniform[variable]), len(p) - 1)
        out[variable, drawn] = 1.0
    return out.reshape(-1)


# ---------------------------------------------------------------------------- fusion, Eq. 2-5


def gate(w: Weights, tau: Array, layer: int) -> Array:
    """Eq. 5 of one layer: p = σ(W2 GELU(W1 LN(τ))), with the biases of both layers."""
    hidden = w["w2"].shape[1]
    rows = slice(layer * hidden, (layer + 1) * hidden)
    x = gelu(w["w1.weight"][rows] @ layer_norm(under(w, "norm"), tau) + w["w1.bias"][rows])
    return sigmoid(w["w2"][layer].T @ x + w["bias"][layer, 0])


def expert(w: Weights, z: Array) -> Array:
    """The adapter branch: LayerNorm → GEGLU → Linear → LayerScale."""
    value, opening = np.split(linear(under(w, "up"), layer_norm(under(w, "norm"), z)), 2)
    return w["scale"] * linear(under(w, "down"), value * gelu(opening))


def tamf(w: Weights, e: Array, s: Array, tau: Array, layers: int) -> Array:
    """Eq. 2-4: the projection of [e; s] and L gated layers."""
    projection = np.concatenate([w["fuse_semantic.weight"], w["fuse_state.weight"]], 1)
    z = projection @ np.concatenate([e, s]) + w["fuse_semantic.bias"]
    for layer in range(layers):
        p = gate(under(w, "allocator"), tau, layer)
        semantic, dynamic = expert(under(w, f"semantic.{layer}"), z), expert(under(w, f"dynamic.{layer}"), z)
        z = z + (1.0 - p) * semantic + p * dynamic
    return z


# ---------------------------------------------------------------------------- the joint model


class World:
    """The joint model for one sequence (no batch axis), read from its weights."""

    def __init__(self, model: nn.Module) -> None:
        self.w = weights(model)
        self.c: Any = model.config

    def probs(self, logits: Array) -> Array:
        return unimix(logits.reshape(self.c.classes, self.c.categories), self.c.unimix)

    def tau(self, y: Array) -> Array:
        return mlp(under(self.w, "task_encoder"), y)

    def psi(self, tau: Array) -> Array:
        return normalise(mlp(under(self.w, "aligner"), tau))

    def adapt(self, e: Array) -> Array:
        return normalise(e + self.w["adapter.scale"] * mlp(under(self.w, "adapter.net"), e))

    def fuse(self, e: Array, s: Array, tau: Array) -> Array:
        return tamf(under(self.w, "fusion"), e, s, tau, self.c.fusion_layers)

    def posterior(self, image: Array) -> Array:
        features = image_encoder(under(self.w, "rssm.encoder"), image)
        return self.probs(mlp(under(self.w, "rssm.posterior_net"), features))

    def first(self) -> Array:
        return np.tanh(self.w["rssm.h_first"])

    def step(self, h: Array, z: Array, action: Array, dynamics: str = "rssm") -> Array:
        return norm_gru(under(self.w, f"{dynamics}.gru"), np.concatenate([z, action]), h)

    def prior(self, h: Array, dynamics: str = "rssm") -> Array:
        return self.probs(mlp(under(self.w, f"{dynamics}.prior_net"), h))

    def predict(self, h: Array, s: Array) -> Array:
        return normalise(mlp(under(self.w, "semantic_predictor"), np.concatenate([h, s])))

    def text_start(self, tau: Array) -> tuple[Array, Array]:
        mapped = mlp(under(self.w, "text_map"), tau)
        return np.tanh(mapped[: self.c.deter]), self.probs(mapped[self.c.deter :])

    def imagine(
        self, h: Array, z: Array, e: Array, tau: Array, actions: Array, uniforms: Array | None
    ) -> tuple[list[Array], list[Array], list[Array], list[Array]]:
        """Eq. 6 over len(actions) steps: lists of h, z, e (start included) and of the priors."""
        hs, zs, es = [h], [z], [e]
        priors: list[Array] = []
        for t, action in enumerate(actions):
            if t == 0 or self.c.reads_imagined:
                h = self.step(h, z, action)
            else:
                h = norm_gru(under(self.w, "rssm.imagination"), action, h)
            prior = self.prior(h)
            s = one_hot(prior, None if uniforms is None else uniforms[t])
            if self.c.imagined_semantics == "predict":
                e = self.predict(h, s)
            z = self.fuse(e, s, tau)
            for trail, value in ((hs, h), (zs, z), (es, e), (priors, prior)):
                trail.append(value)
        return hs, zs, es, priors

    def text_imagine(self, tau: Array, actions: Array, uniforms: Array | None) -> tuple[list[Array], list[Array]]:
        """Eq. 7, 8: z̃^τ and p̃ at steps 0..len(actions), from f_map(τ)."""
        h, probs = self.text_start(tau)
        zs: list[Array] = []
        all_probs: list[Array] = []
        for t in range(len(actions) + 1):
            if t:
                action = actions[t - 1] if self.c.text_actions == "policy" else np.zeros_like(actions[t - 1])
                h = self.step(h, zs[-1], action, "text_dynamics")
                probs = self.prior(h, "text_dynamics")
            s = one_hot(probs, None if uniforms is None else uniforms[t])
            zs.append(self.fuse(self.psi(tau), s, tau))
            all_probs.append(probs)
        return zs, all_probs
