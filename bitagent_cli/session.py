"""From the common options to what a stage is given: a resolved preset and a `Run`."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from bitagent_cli import presets
from bitagent_cli.options import Common
from bitagent_cli.presets import Preset
from stages.backbones.internvideo2 import missing_weights
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run, resolve_device
from stages.runtime.distributed import is_first_process, require_one_process
from stages.runtime.errors import BadInput
from stages.runtime.loop import duration
from stages.runtime.sinks import check_sink

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
    check_sink(common.log)
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
        preset=common.preset, options=repeated(common), log=common.log,
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
    """The first line of every stage: what was resolved."""
    return f"{stage}: {domain}, scale {scale}{why}, {device}, seed {seed}, in {root}"


SHOWN = ("image", "kl_nats", "imagined_reward", "data_value", "value", "loss")  # of what a training ended with


def outcome(made: Sequence[Artifact]) -> str:
    """One line: what a stage made."""
    first, stage = made[0], made[0].meta["stage"]
    extra, took = first.meta["extra"], duration(sum(a.meta["wall_seconds"] for a in made) / 60)
    if stage == "evaluate":
        scores = [f"{r['task']} {r['score']:.2f} ± {r['stderr']:.2f}" for r in extra["rows"]]
        return f"evaluate: score {', '.join(scores)} (0: random, 1: expert), {first.path}"
    if stage == "visualize":
        return f"visualize: open {first.path.absolute() / 'report.html'}"
    if stage in ("collect", "embed"):
        frames = sum(a.meta["extra"].get("frames", 0) for a in made)
        return f"{stage}: {len(made)} datasets{f', {frames} frames' if frames else ''}, {first.path.parent}"
    ended = {**extra.get("losses", {}), **extra.get("summary", {})}
    figures = [f"{name} {ended[name]:.3g}" for name in SHOWN if name in ended]
    return f"{stage}: {', '.join(figures)}, in {took}, {first.path}"


def tell(run: Run, *made: Artifact) -> None:
    """Print the line of what a stage made, unless the run is quiet."""
    if not run.quiet and made:
        print(outcome(made), flush=True)
