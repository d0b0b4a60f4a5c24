"""From the common options to what a stage is given: a resolved preset and a `Run`."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

import torch

from bitagent_cli import presets
from bitagent_cli.options import Common
from bitagent_cli.presets import Preset
from stages.backbones.internvideo2 import missing_weights
from stages.runtime.config import Run, resolve_device
from stages.runtime.distributed import is_first_process, require_one_process
from stages.runtime.errors import BadInput
from stages.runtime.update import fast_bf16

# Minutes a stage took for the walker on 2 CPU cores (behave and evaluate: one task), with bfloat16 in hardware and
# without. A scale or stage that was not timed announces no estimate.
MINUTES: dict[str, dict[str, tuple[float, float]]] = {
    "laptop": {
        "collect": (7, 30), "embed": (2, 17), "pretrain": (10, 34), "behave": (3, 9), "evaluate": (0.2, 0.5),
        "visualize": (1, 1),
    },
}  # fmt: skip

GPU_GIB = 8  # of memory that updates at the paper's sizes need, with their data on the CPU
PAPER_DISK_GIB = 150  # frames, states and embeddings of a domain at scale paper, models and checkpoints

PARALLEL = ("pretrain", "behave")  # the stages that torchrun may start several processes of


def prepare(common: Common, stage: str, method: str = "bitagent") -> tuple[Preset, Run]:
    """Resolve device, scale and preset, and print the line that says so.

    Raises:
        BadInput: anything in the common options that cannot be used.
    """
    if stage not in PARALLEL:
        require_one_process(stage)
    device = resolve_device(common.device)
    scale, why = resolve_scale(common.scale, device, common.out or Path("runs"))
    preset = presets.resolve(common.preset, scale, common.set, method)
    root = common.out or Path("runs") / f"{preset.domain}-{scale}"
    if root.exists() and not root.is_dir():
        raise BadInput(f"--out {root} is a file: give a folder")
    quiet = common.quiet or not is_first_process()  # of several torchrun processes, the first speaks
    if not quiet:
        print(announcement(stage, preset.domain, scale, why, device, common.seed, root), flush=True)
    run = Run(
        domain=preset.domain, scale=scale, root=root, seed=common.seed, device=device, fresh=common.fresh,
        renew=common.renew, quiet=quiet, resolved={"scale": scale, **preset.model_dump(mode="json")},
        preset=common.preset, options=repeated(common),
    )  # fmt: skip
    return preset, run


def prepare_paper(common: Common) -> Run:
    """What the page over all domains is told: the scale, and where it goes; no preset is involved."""
    device = resolve_device(common.device)
    scale, why = resolve_scale(common.scale, device, common.out or Path("runs"))
    root = common.out or Path("runs") / f"paper-{scale}"
    if not common.quiet:
        print(announcement("visualize", "paper", scale, why, device, common.seed, root), flush=True)
    return Run("paper", scale, root, common.seed, device, common.fresh, quiet=common.quiet)


def note_missing_weights(preset: Preset) -> None:
    """Say on stderr, before hours of collecting, that `embed` will need weights that are not there.

    Only a note: the data is of use by itself, and the weights may come meanwhile or be downloaded by `embed`.
    """
    if "internvideo2" in (preset.embed.backbone, preset.pretrain.backbone) and (missing := missing_weights()):
        print(f"note: collect goes on, but for embed {missing}", file=sys.stderr, flush=True)


def repeated(common: Common) -> tuple[str, ...]:
    """The options, beside domain and scale, without which another command would work on another run: quoted."""
    words = [] if common.out is None else ["--out", str(common.out)]
    words += [word for setting in common.set for word in ("--set", setting)]
    return tuple(shlex.quote(word) for word in words)


def resolve_scale(scale: str, device: str, folder: Path) -> tuple[str, str]:
    """'auto' → the scale that suits the machine, and the reason to print."""
    return auto_scale(device, folder) if scale == "auto" else (scale, "")


def auto_scale(device: str, folder: Path) -> tuple[str, str]:
    """The scale that suits a device, runs in `folder` and the weights at hand, and why."""
    if device != "cuda":
        return "laptop", " (auto: no CUDA)"
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    if memory < GPU_GIB:
        return "laptop", f" (auto: a GPU of {memory:.0f} GiB, {GPU_GIB} are needed)"
    if missing_weights():
        return "gpu", " (auto: CUDA, without InternVideo2's weights)"
    free = free_gib(folder)
    if free < PAPER_DISK_GIB:
        return "gpu", f" (auto: {free:.0f} GiB of disk, scale paper takes {PAPER_DISK_GIB})"
    return "paper", " (auto: CUDA)"


def free_gib(folder: Path) -> float:
    """Free space where a folder is, or would be made."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free / 2**30


def announcement(stage: str, domain: str, scale: str, why: str, device: str, seed: int, root: Path) -> str:
    """The first line of every stage: what was resolved and how long it takes."""
    minutes = MINUTES.get(scale, {}).get(stage)
    estimate = "" if minutes is None else f"; about {duration(minutes[0 if fast_bf16(device) else 1])}"
    return f"{stage}: {domain}, scale {scale}{why}, {device}, seed {seed}, in {root}{estimate}"


def duration(minutes: float) -> str:
    """0.2 → '12 s', 12 → '12 min', 90 → '1.5 h'."""
    if minutes < 1.5:
        return f"{round(minutes * 60)} s"
    return f"{round(minutes)} min" if minutes < 90 else f"{minutes / 60:.1f} h"
