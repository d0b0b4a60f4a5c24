"""One optimizer update as a callable: eager, with its small functions compiled, or captured in a CUDA graph.

GPU updates of a model this small are bound by kernel launches; capturing forward, backward,
clipping and the optimizer step as one graph leaves a single launch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from stages.runtime.compiling import fusing

Batch = Mapping[str, Tensor]
Terms = dict[str, Tensor]
Update = Callable[[Batch], Terms]

UPDATE_BYTES = 12 * 2**30  # twice what an update at the paper's sizes allocates
CAPTURE = threading.Lock()  # held while a CUDA graph is recorded: no other thread may allocate or copy meanwhile


def fast_bf16(device: str | torch.device) -> bool:
    """Whether bfloat16 products run in hardware: on GPUs from Ampere on, and on CPUs with AVX512-BF16 or AMX."""
    if torch.device(device).type != "cpu":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capability = torch.cpu.get_capabilities()
    return bool(capability.get("avx512_bf16") or capability.get("amx_bf16"))


def roomy(size: int, device: torch.device) -> torch.device:
    """`device` where `size` bytes leave half of its free memory, or what updates need, to others; else the CPU."""
    if device.type != "cuda":
        return device
    free = torch.cuda.mem_get_info(device)[0]
    return device if size < max(free // 2, free - UPDATE_BYTES) else torch.device("cpu")


def autocast(device: torch.device, bf16: bool) -> torch.autocast:
    """bfloat16 autocast where asked for and fast: a CPU that emulates it takes 100 times as long as in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16 and fast_bf16(device))


def make_optimizer(parameters: list[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Fused AdamW; capturable on CUDA so that its step can be part of a graph, which reads the step size anew."""
    device = next((p.device for p in parameters if p.is_cuda), None)
    optimizer = torch.optim.AdamW(
        parameters, lr=lr, weight_decay=weight_decay, eps=1e-8, fused=True, capturable=device is not None
    )
    if device is not None:
        for group in optimizer.param_groups:
            group["lr"] = torch.full((), lr, device=device)
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Change the step size in place: a captured update goes on reading the same tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def annealed(step: int, updates: int, share: float) -> float:
    """What of the learning rate is left at update `step` of 1..`updates`: all of it, then a line that would reach zero
    one update after the last, over the last `share` of them."""
    return min(1.0, (updates + 1 - step) / max(1.0, share * updates))


def make_update(
    loss: Callable[[Batch], tuple[Tensor, Terms]],
    optimizers: Sequence[tuple[torch.optim.Optimizer, float]],
    device: torch.device,
    *,
    bf16: bool,
    compiled: bool,
    captured: bool = False,
    after: Callable[[], None] | None = None,
) -> Update:
    """Build update(batch) → terms: loss, backward, gradient clipping by norm, optimizer steps.

    Args:
        loss: returns the scalar to minimise and detached terms to log.
        optimizers: each with the gradient norm its parameters are clipped to.
        bf16: forward pass under bfloat16 autocast, see `autocast`.
        compiled: the small functions that repeat in it are compiled (`stages.runtime.compiling.fusible`).
        captured: replay the whole update as a CUDA graph (batches of one fixed shape).
        after: extra in-place work after the step (slow targets).
    """

    def update(batch: Batch) -> Terms:
        with autocast(device, bf16), fusing(compiled):
            total, terms = loss(batch)
        for optimizer, _ in optimizers:
            optimizer.zero_grad(set_to_none=True)
        total.backward()
        terms = dict(terms, loss=total.detach())
        for i, (optimizer, clip) in enumerate(optimizers):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            norm = nn.utils.clip_grad_norm_(parameters, clip, foreach=True)
            terms[f"grad_norm{i or ''}"] = norm.detach()
            optimizer.step()
        if after is not None:
            after()
        return terms

    return CapturedUpdate(update) if captured and device.type == "cuda" else update


class CapturedUpdate:
    """Replays `update` as one CUDA graph; the first calls run eagerly, as capture needs warm state."""

    WARMUP = 3

    def __init__(self, update: Update) -> None:
        self.update, self.calls = update, 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.batch: dict[str, Tensor] = {}
        self.terms: Terms = {}

    def __call__(self, batch: Batch) -> Terms:
        self.calls += 1
        if self.graph is None and self.calls <= self.WARMUP:
            return self._on_side_stream(batch)
        if self.graph is None:
            self._capture(batch)
        for key, value in batch.items():
            self.batch[key].copy_(value, non_blocking=True)
        assert self.graph is not None
        self.graph.replay()
        return self.terms

    def _on_side_stream(self, batch: Batch) -> Terms:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            terms = self.update(batch)
        torch.cuda.current_stream().wait_stream(stream)
        return terms

    def _capture(self, batch: Batch) -> None:
        """Record one update. Recording executes nothing, so weights and random state stay as they were."""
        self.batch = {k: v.clone() for k, v in batch.items()}
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        # thread_local: what a thread outside this project does is no reason to give the recording up.
        with CAPTURE, torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.terms = self.update(self.batch)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Optimizer state as flat tensors {'<parameter index>.<key>': tensor}, for safetensors."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{k}": v for i, slots in state.items() for k, v in slots.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`."""
    whole = optimizer.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    whole["state"] = state
    optimizer.load_state_dict(whole)
