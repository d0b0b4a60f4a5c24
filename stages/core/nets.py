"""Building blocks: MLPs, the norm-GRU, image encoder and decoder, one-hot categoricals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.runtime.compiling import fusible

IMAGE_CHANNELS = 3
IMAGE_SIZE = 64  # height and width of the frames that encoder and decoder are made for


class Repeated:
    """A linear map, or with `norm` (shape and ε) a LayerNorm, at every step of an unrolled loop (`unrolled`).

    Its weights are cast once. Their gradient is taken once, after the loop's backward pass, from the inputs and output
    gradients of all steps together: one product where there would be one and a sum at every step.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, norm: tuple[tuple[int, ...], float] | None = None) -> None:
        self.given, self.norm, self.uses = (weight, bias), norm, list[tuple[Tensor, ...]]()
        self.cast: tuple[Tensor, Tensor | None] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        x = x.float() if self.norm else x.to(autocast_dtype(x))
        if self.cast is None:
            self.cast = _Weights.apply(self, x.dtype, *self.given)
        return _Use.apply(self, x, *self.cast)


class _Weights(torch.autograd.Function):
    """The weights of a `Repeated` in the type of its products; backward is called when all uses have been."""

    @staticmethod
    def forward(ctx: Any, owner: Repeated, kind: torch.dtype, weight: Tensor, bias: Tensor | None) -> Any:
        # Not the owner: it holds what this returns, and nothing could free a ring through the graph.
        ctx.uses, ctx.norm, ctx.given, ctx.kind = owner.uses, owner.norm, owner.given, weight.dtype
        ctx.set_materialize_grads(False)  # the uses hand on none
        return tuple(None if p is None else p.to(kind, copy=True) for p in (weight, bias))

    @staticmethod
    def backward(ctx: Any, *_: None) -> Any:
        if not ctx.uses:
            return None, None, None, None
        x, grad, *moments = (torch.cat(parts) for parts in zip(*ctx.uses, strict=True))
        ctx.uses.clear()
        if ctx.norm is None:
            bias = grad.sum(0).to(ctx.kind) if ctx.needs_input_grad[3] else None
            return None, None, (grad.T @ x).to(ctx.kind), bias
        back = torch.ops.aten.native_layer_norm_backward
        return None, *back(grad, x, ctx.norm[0], *moments, *ctx.given, [False, True, True])


class _Use(torch.autograd.Function):
    """One step's use: x (..., I) → (..., O)."""

    @staticmethod
    def forward(ctx: Any, owner: Repeated, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.owner = owner
        if owner.norm is None:
            ctx.save_for_backward(x, weight)
            return F.linear(x, weight, bias)
        out, mean, rstd = torch.native_layer_norm(x, owner.norm[0], weight, bias, owner.norm[1])
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (x, weight, *rest), owner, into = ctx.saved_tensors, ctx.owner, None
        if ctx.needs_input_grad[2]:
            owner.uses.append(tuple(t.reshape(-1, t.shape[-1]) for t in (x, grads[0], *rest[1:])))
        if ctx.needs_input_grad[1] and owner.norm is None:
            into = grads[0] @ weight
        elif ctx.needs_input_grad[1]:
            back = torch.ops.aten.native_layer_norm_backward
            into = back(grads[0], x, owner.norm[0], *rest[1:], weight, rest[0], [True, False, False])[0]
        return None, into, None, None


class Linear(nn.Linear):
    """A linear map that an unrolled loop may repeat."""

    repeated: Callable[[Tensor], Tensor] | None = None

    def repeat(self) -> Repeated:
        return Repeated(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.repeated(x) if self.repeated else super().forward(x)


class LayerNorm(nn.LayerNorm):
    """A norm that an unrolled loop may repeat."""

    repeated: Callable[[Tensor], Tensor] | None = None

    def repeat(self) -> Repeated:
        return Repeated(self.weight, self.bias, (self.normalized_shape, self.eps))

    def forward(self, x: Tensor) -> Tensor:
        return self.repeated(x) if self.repeated else super().forward(x)


@contextmanager
def unrolled(*modules: nn.Module) -> Iterator[None]:
    """In here, loop over time: what of these modules can `repeat` does so, where it does not already."""
    parts: list[Any] = [m for module in modules for m in module.modules() if getattr(m, "repeated", m) is None]
    for part in parts:
        part.repeated = part.repeat()
    try:
        yield
    finally:
        for part in parts:
            part.repeated = None


class MLP(nn.Sequential):
    """`layers` blocks of Linear → LayerNorm → SiLU, then a Linear to `out` features."""

    def __init__(self, inp: int, out: int, units: int, layers: int, *, zero_out: bool = False) -> None:
        blocks: list[nn.Module] = []
        for i in range(layers):
            blocks += [Linear(inp if i == 0 else units, units, bias=False), LayerNorm(units), nn.SiLU()]
        head = Linear(units if layers else inp, out)
        if zero_out:  # a critic that starts at zero does not drag early returns around
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        super().__init__(*blocks, head)


class NormGRU(nn.Module):
    """GRU cell with one LayerNorm over its three gates and an update gate biased to keep the past.

    The input passes one hidden layer of width D first, where its parts meet (what an action does depends on the
    pose). It is separate from the recurrence, so that it runs for all time steps at once and the loop over time holds
    one (B, D) × (D, 3D) product a step.
    """

    def __init__(self, inp: int, deter: int) -> None:
        super().__init__()
        self.deter = deter
        self.inp = MLP(inp, 3 * deter, deter, 1)
        self.rec = Linear(deter, 3 * deter, bias=False)
        self.norm = LayerNorm(3 * deter)

    def cell(self, projected: Tensor, h: Tensor) -> Tensor:
        """projected = inp(x): (..., 3D), h: (..., D) → next h (..., D)."""
        return gated(self.norm(projected + self.rec(h)), h)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.cell(self.inp(x), h)

    def scan(self, x: Tensor, h: Tensor, reset: Tensor, h_reset: Tensor) -> Tensor:
        """Run over time. x (B, T, I), h (B, D), reset (B, T) bool, h_reset (B, D) → (B, T, D).

        Where reset[:, t] is true the state before step t is replaced by `h_reset`.
        """
        projected = self.inp(x).unbind(1)  # T × (B, 3D)
        keep = (~reset).unsqueeze(-1).to(h.dtype)  # (B, T, 1)
        restart = (h_reset.unsqueeze(1) * (1.0 - keep)).unbind(1)  # T × (B, D)
        states = []
        with unrolled(self.rec, self.norm):
            for given, kept, new in zip(projected, keep.unbind(1), restart, strict=True):
                h = self.cell(given, torch.addcmul(new, h, kept)).to(h.dtype)
                states.append(h)
        return torch.stack(states, 1)


@fusible
def gated(gates: Tensor, h: Tensor) -> Tensor:
    """The step of a GRU: gates (..., 3D), its reset, candidate and update; h (..., D) → next h."""
    reset, candidate, update = gates.chunk(3, -1)
    candidate = torch.tanh(torch.sigmoid(reset) * candidate)
    update = torch.sigmoid(update - 1.0)
    return torch.lerp(h, candidate.to(h.dtype), update.to(h.dtype))


def he_init(module: nn.Module) -> None:
    """He initialisation of convolutions: with no norm between them, PyTorch's default shrinks the signal."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class ImageEncoder(nn.Sequential):
    """uint8 image (N, 3, 64, 64) → (N, 8·depth·4·4); four stride-2 convolutions. `channels`: of a stack of frames."""

    def __init__(self, depth: int, channels: int = IMAGE_CHANNELS) -> None:
        widths = [channels, depth, 2 * depth, 4 * depth, 8 * depth]
        blocks: list[nn.Module] = []
        for inp, out in pairwise(widths):
            blocks += [nn.Conv2d(inp, out, 4, 2, 1), nn.SiLU()]
        super().__init__(*blocks)
        self.apply(he_init)
        self.out_features = 8 * depth * 16

    def forward(self, image: Tensor) -> Tensor:
        x = normalize_image(image.contiguous(memory_format=torch.channels_last), autocast_dtype(image))
        return super().forward(x).flatten(1)


class SubPixelConv(nn.Conv2d):
    """A convolution whose filters are applied in the order (row, column, channel) of the shuffle that follows."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.bias is not None
        weight, bias = (p.unflatten(0, (-1, 4)).transpose(0, 1).flatten(0, 1) for p in (self.weight, self.bias))
        return F.conv2d(x, weight, bias, self.stride, self.padding)


class BlockShuffle(nn.Module):
    """Pixel shuffle by 2 after `SubPixelConv`: (N, 4C, H, W) → (N, C, 2H, 2W), both channels last.

    It moves runs of channels where `nn.PixelShuffle` moves single numbers: 2.4 times as fast on a CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        blocks = x.permute(0, 2, 3, 1).unflatten(-1, (2, 2, -1))  # (N, H, W, 2, 2, C)
        return blocks.transpose(2, 3).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


class ImageDecoder(nn.Module):
    """Latent (N, D) → image (N, 3, 64, 64) in [-0.5, 0.5] units (unbounded mean of a unit Gaussian).

    Each doubling is a convolution and a pixel shuffle: 40 % less time than transposed convolutions on a CPU.
    """

    def __init__(self, inp: int, depth: int) -> None:
        super().__init__()
        self.depth = depth
        self.stem = nn.Linear(inp, 8 * depth * 16)
        blocks: list[nn.Module] = []
        for a, b in pairwise([8 * depth, 4 * depth, 2 * depth, depth]):
            blocks += [SubPixelConv(a, 4 * b, 3, 1, 1), BlockShuffle(), nn.SiLU()]
        blocks.append(nn.Conv2d(depth, 4 * IMAGE_CHANNELS, 3, 1, 1))
        self.convs = nn.Sequential(*blocks).apply(he_init)

    def forward(self, z: Tensor) -> Tensor:
        return F.pixel_shuffle(self._unshuffled(z), 2)

    def _unshuffled(self, z: Tensor) -> Tensor:
        """The image before its last pixel shuffle: (N, 12, 32, 32)."""
        x = self.stem(z).unflatten(-1, (8 * self.depth, 4, 4))
        return self.convs(x.contiguous(memory_format=torch.channels_last))

    def squared_error(self, z: Tensor, image: Tensor) -> Tensor:
        """Of the decoded frames against image (N, 3, 64, 64), summed over a frame's pixels, mean over frames.

        The target is unshuffled instead of the prediction: it comes as uint8 and asks for no gradient.
        """
        found = self._unshuffled(z)
        error = found.float() - normalize_image(_pixel_unshuffle(image))  # (N, 12, 32, 32)
        return torch.linalg.vector_norm(error).square() / len(found)  # a third of mse_loss's time on a CPU


def _pixel_unshuffle(image: Tensor) -> Tensor:
    """`F.pixel_unshuffle(image, 2)` in channels-last order, plane by plane: a quarter of its time on a CPU."""
    blocks = image.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2))  # (N, C, H/2, 2, W/2, 2)
    planes = blocks.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)  # (N, 4C, H/2, W/2)
    return planes.contiguous(memory_format=torch.channels_last)


def autocast_dtype(like: Tensor) -> torch.dtype:
    """What autocast computes in on this tensor's device, or float32 where it is off: what several layers read is
    cast once."""
    kind = like.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32


def normalize_image(image: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 → `dtype` in [-0.5, 0.5]; a float image is taken to be normalised already.

    Halves up to 128 are exact in bfloat16: it rounds once, in the product, as a cast from float32 would.
    """
    return image if image.is_floating_point() else image.to(dtype).sub_(127.5).mul_(1 / 255.0)


def to_uint8(decoded: Tensor) -> Tensor:
    """Inverse of `normalize_image`, rounded and clipped."""
    return ((decoded.float() + 0.5) * 255.0).round().clamp(0, 255).to(torch.uint8)


# ---------------------------------------------------------------------------- categoricals


@fusible
def unimix_log_probs(logits: Tensor, unimix: float) -> Tensor:
    """Log of (1 - unimix)·softmax(logits) + unimix / K, over the last axis, in float32."""
    probs = torch.softmax(logits.float(), -1)
    return torch.log((1.0 - unimix) * probs + unimix / logits.shape[-1])


@fusible
def sample_one_hot(log_probs: Tensor, uniform: Tensor | None) -> Tensor:
    """Straight-through one-hot sample of (..., C, K), flattened to (..., C·K).

    `uniform` (..., C) in [0, 1) is where each variable's distribution function is inverted; None takes the mode. The
    gradient is that of the probabilities (DreamerV2/V3).
    """
    probs = log_probs.exp()
    if uniform is None:
        index = log_probs.argmax(-1, keepdim=True)
    else:
        index = torch.searchsorted(probs[..., :-1].detach().cumsum(-1), uniform.unsqueeze(-1), right=True)
    hard = torch.zeros_like(log_probs).scatter_(-1, index, 1.0)
    return (hard + probs - probs.detach()).flatten(-2)


def categorical_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) of log-probabilities (..., C, K), summed over the C variables → (...)."""
    return (p.exp() * (p - q)).sum((-2, -1))
