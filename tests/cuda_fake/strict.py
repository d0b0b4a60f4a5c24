"""What an update on a GPU must not do, found without one: tensors whose device is "cuda" and that hold no numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)
OPERATORS = torch.library.Library("aten", "IMPL")
COPIES = {"aten::_to_copy", "aten::copy_"}
READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"}


class NotOneDevice(Exception):
    """An operator on tensors of two devices, a copy between them, or a value read back from the GPU."""


class Strict(TorchDispatchMode):
    """Refuses everything that a CUDA graph cannot hold.

    Args:
        uploads: allow copies from the CPU to the GPU, as of a batch, or of noise drawn on the CPU.
    """

    def __init__(self, uploads: bool = False) -> None:
        super().__init__()
        self.uploads = uploads

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if name in READS and any(x.device.type == "cuda" for x in given):
            raise NotOneDevice(f"{name} waits for the GPU")
        # Fake tensors have no rule for the step size as a tensor; it changes its arguments and returns nothing.
        out = None if func is torch.ops.aten._fused_adamw_.tensor_lr else func(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if name in COPIES:
            source, target = given[-1].device.type, made[0].device.type
            if source != target and not (self.uploads and target == "cuda"):
                raise NotOneDevice(f"{name} from {source} to {target}")
        else:  # a number on the CPU is passed to a kernel as an argument
            kinds = {x.device.type for x in [*given, *made] if x.ndim}
            if len(kinds) > 1:
                raise NotOneDevice(f"{name} on {', '.join(sorted(kinds))}")
        return out


def moved(module: nn.Module, device: torch.device | str) -> nn.Module:
    """`Module.to`, which puts new data into a parameter: a fake one has none, and is replaced."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            part.register_parameter(name, nn.Parameter(parameter.detach().to(device), parameter.requires_grad))
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, buffer.to(device))
    return module


@contextmanager
def fake_cuda() -> Iterator[None]:
    """In here "cuda" is a device with bfloat16 and 64 GiB, whose tensors have shapes and no numbers."""
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda including_emulation=True: True
    torch.cuda.mem_get_info = lambda device=None: (2**36, 2**36)  # type: ignore[assignment]
    torch.autograd.set_multithreading_enabled(False)  # the engine has no thread for this device
    nn.Module.to = moved  # type: ignore[method-assign, assignment]
    # Known to builds with CUDA alone: without it, it is seen as the ten operators it stands for.
    OPERATORS.impl("silu_backward", lambda grad, x: torch.empty_like(x), "CUDA")
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield
