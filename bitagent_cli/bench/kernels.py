"""How many kernels an update launches, counted from the operators it dispatches on whatever device it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

# Operators that launch nothing beside views: what allocates, renames, or asks a tensor about itself.
FREE = {
    "aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided",
    "aten::detach", "aten::alias", "aten::lift_fresh", "aten::_unsafe_view", "aten::set_", "prim::device",
}  # fmt: skip


class KernelCount(TorchDispatchMode):
    """Counts operators that are neither views nor allocations, by name, forward and backward alike.

    One that works on many tensors at once (fused AdamW, `_foreach`) counts as one kernel. It is a few in truth. A small
    compiled function (`stages.runtime.fusing`) is not seen: count the eager update.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name
        if not func.is_view and name not in FREE:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def count_kernels(call: Callable[[], object]) -> int:
    """The kernels of one call. On the CPU they are those of its operators, nearly the same."""
    with KernelCount() as counter:
        call()
    return counter.found.total()
