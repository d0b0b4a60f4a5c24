"""The first minutes on a rented GPU: is training right there, how fast is it, and what does a short run earn.

Every part writes its result before the next begins, so that a run that is cut off has told what it found. What a part
did not manage is an `error` in its place, and the next one goes on.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitagent_cli.bench import train as bench
from bitagent_cli.presets import Preset
from stages import behave, collect, embed, evaluate, methods, pretrain
from stages.data.episodes import Dataset, DatasetWriter
from stages.data.rerender import render_dataset
from stages.policies.goals import Ask
from stages.runtime import artifacts, storage
from stages.runtime.artifacts import Artifact
from stages.runtime.compiling import Compile, compiler_lack, keep_compiled
from stages.runtime.config import Run
from stages.runtime.distributed import World
from stages.runtime.errors import BadInput
from stages.runtime.update import CapturedUpdate
from stages.runtime.workers import usable_cores

UPDATES = 5  # that must be the same, eager and not
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}  # relative, of every term
SHARES = {"pretrain": 0.65, "behave": 0.2}  # of the time that is left when the data is there
LEAST = 10  # updates of a loop, however little time is left
CARRIED_MB = 38.0

Part = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class GpuOrder:
    """What is asked for: minutes of the real run, its task, timed updates, and a folder of datasets without frames."""

    minutes: float
    task: str
    updates: int = 20
    states: Path | None = None


def run_all(preset: Preset, run: Run, order: GpuOrder) -> dict[str, Any]:
    """All parts in order, into <run>/gpu.json, and a Markdown row into <run>/gpu.md."""
    keep_compiled(run.root)
    place, width = World(0, 1, torch.device(run.device)), preset.embed.offline.dim
    speed: dict[str, Any] = {}

    def measured() -> dict[str, Any]:
        speed.update(bench.run(preset.pretrain, preset.behave, preset.model, run.device, width, order.updates))
        return speed

    parts: dict[str, Part] = {
        "machine": lambda: machine(place.device),
        "same": lambda: same_updates(preset, width, place),
        "speed": measured,
        "genrl": lambda: genrl_speed(preset, width, place, order.updates),
        "run": lambda: short_run(preset, run, order, speed),
    }
    report: dict[str, Any] = {"scale": run.scale, "domain": run.domain}
    for name, part in parts.items():
        began = time.perf_counter()
        try:
            report[name] = part()
        except (BadInput, RuntimeError, AssertionError) as error:  # of CUDA, of a compiler, or of too little data
            report[name] = {"error": f"{type(error).__name__}: {str(error)[:400]}"}
        report[name]["seconds"] = round(time.perf_counter() - began, 1)
        keep_report(run.root, report)
        if not run.quiet:
            print(f"{name}: {json.dumps(report[name])[:240]}", flush=True)
    return report


def keep_report(folder: Path, report: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    storage.replace_file(folder / "gpu.json", lambda draft: draft.write_text(json.dumps(report, indent=2) + "\n"))
    storage.replace_file(folder / "gpu.md", lambda draft: draft.write_text(row_table(report)))


COLUMNS = (
    "device", "scale", "pretraining ms", "behaviour ms", "kernels", "TFLOP/s", "peak GiB", "same as eager",
    "pretraining minutes", "score",
)  # fmt: skip


def row_table(report: dict[str, Any]) -> str:
    """A table of one row; n/a for what is not known."""

    def pick(*keys: str) -> Any:
        found: Any = report
        for key in keys:
            found = found.get(key, {}) if isinstance(found, dict) else {}
        return "n/a" if found in ({}, None) else found

    def both(key: str) -> str:
        return f"{pick('speed', 'pretrain', key)}, {pick('speed', 'behave', key)}"

    score = f"{pick('run', 'task')} {pick('run', 'score')}"
    cells = [
        pick("machine", "device"), pick("scale"), pick("speed", "pretrain", "ms"), pick("speed", "behave", "ms"),
        both("kernels"), both("tflops"), both("peak_gib"), pick("same", "all"), pick("run", "pretrain_minutes"), score,
    ]  # fmt: skip
    rows = [COLUMNS, ["---"] * len(COLUMNS), cells]
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in rows)


def machine(device: torch.device) -> dict[str, Any]:
    """Devices and versions."""
    cuda = device.type == "cuda"
    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] if cuda else []
    lack = compiler_lack(device.type)
    return {
        "device": bench.device_name(device),
        "cards": [f"{card.name}, {card.total_memory / 2**30:.0f} GiB" for card in cards],
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "compiler_lacks": list(lack) if lack else None,
    }


# ---------------------------------------------------------------------------- the same updates


def same_updates(preset: Preset, width: int, place: World) -> dict[str, Any]:
    """The largest relative difference of any term over a few pretraining updates, compiled or captured against eager.

    `all` says whether none is above its tolerance; what this machine cannot do is None.
    """
    found: dict[str, Any] = {}
    for name in TOLERANCE:
        settings = preset.pretrain.model_copy(update={"bf16": name == "bfloat16"})
        eager = list(terms_of("off", settings, preset, width, place))
        for how in ("compiled", "captured"):
            able = compiler_lack(place.device.type) is None if how == "compiled" else place.device.type == "cuda"
            other = terms_of(how, settings, preset, width, place) if able else None
            found[f"{how} {name}"] = None if other is None else float(f"{difference(eager, list(other)):.3g}")
    limits = {key: TOLERANCE[key.split()[1]] for key in found}
    return {**found, "all": all(value is None or value <= limits[key] for key, value in found.items())}


def terms_of(how: str, config: pretrain.Config, preset: Preset, width: int, place: World) -> Iterator[dict[str, float]]:
    """The terms of the first updates of one model on one batch, of the same noise whichever way it is run."""
    torch.manual_seed(0)
    model = methods.build("bitagent", preset.model, width, bench.DIM_ACTION, {}).to(place.device)
    choice: Compile = "on" if how == "compiled" else "off"
    batch, _, update = bench.joint_update(config.model_copy(update={"compile": choice}), model, place)
    if isinstance(update, CapturedUpdate):
        update = update.update  # compiled alone
    if how == "captured":
        update = CapturedUpdate(update)
    torch.manual_seed(1)
    for _ in range(CapturedUpdate.WARMUP + UPDATES):
        yield {key: float(value) for key, value in update(batch).items()}


def difference(one: list[dict[str, float]], two: list[dict[str, float]]) -> float:
    """The largest of any term, relative to its size."""
    pairs = [(a[key], b[key]) for a, b in zip(one, two, strict=True) for key in a]
    return max(abs(a - b) / max(abs(a), 1e-3) for a, b in pairs)


def genrl_speed(preset: Preset, width: int, place: World, updates: int) -> dict[str, Any]:
    """The pretraining update of method genrl, at the same sizes."""
    constants = methods.constants_of("genrl", preset.groundings)
    model = methods.build("genrl", preset.model, width, bench.DIM_ACTION, constants).to(place.device)
    batch, _, update = bench.joint_update(preset.pretrain, model, place)
    return {"ms": round(bench.time_calls(lambda: update(batch), place.device, updates) * 1e3, 2)}


# ---------------------------------------------------------------------------- a short real run


def short_run(preset: Preset, run: Run, order: GpuOrder, speed: dict[str, Any]) -> dict[str, Any]:
    """Pretraining, one policy and its score, in about so many minutes; `speed` says how many updates those hold."""
    began, end = time.monotonic(), time.monotonic() + 60 * order.minutes
    run = replace(run, fresh=True)
    facts: dict[str, Any] = {"task": order.task, "episodes": bring_data(preset, run, order)}
    embed.run(preset.embed, run)
    facts["data_minutes"] = passed(began)

    def updates(loop: str, wanted: int) -> int:
        seconds = (end - time.monotonic()) * SHARES[loop] / (1 - SHARES["pretrain"] if loop == "behave" else 1)
        return max(LEAST, min(wanted, int(seconds * 1e3 / speed[loop]["ms"])))

    count, began = updates("pretrain", preset.pretrain.updates), time.monotonic()
    dynamics = preset.pretrain.dynamics.model_copy(update={"updates": count // 20})
    training = preset.pretrain.model_copy(update={"updates": count, "dynamics": dynamics})
    pretrain.run(replace(preset.sections, pretrain=training), run)
    facts |= {"pretrain_updates": count, "pretrain_minutes": passed(began)}

    count, began, ask = updates("behave", preset.behave.updates), time.monotonic(), Ask(task=order.task)
    behave.run(preset.behave.model_copy(update={"updates": count}), run, ask)
    facts |= {"behave_updates": count, "behave_minutes": passed(began)}
    scored = evaluate.run(preset.evaluate, run, ask)
    row = scored.meta["extra"]["rows"][0]
    return facts | {"score": row["score"], "stderr": row["stderr"], "evaluation": scored.id}


def passed(began: float) -> float:
    """Minutes since then."""
    return round((time.monotonic() - began) / 60, 2)


def bring_data(preset: Preset, run: Run, order: GpuOrder) -> int:
    """Datasets with frames, rendered from states that were carried here, or collected anew; how many episodes."""
    if order.states is None:
        made = collect.run(preset.collect, run)
    else:
        sources = carried(order.states, run.domain)
        cores, size = usable_cores(), 64
        made = [render_dataset(a, run.root / "data" / a.path.name, run, size, None, cores) for a in sources]
    return sum(int(a.meta["extra"]["episodes"]) for a in made)


def carried(folder: Path, domain: str) -> list[Artifact]:
    """The datasets in a folder. Raises BadInput when there is none."""
    paths = sorted(file.parent for file in folder.glob("*/artifact.json"))
    if not paths:
        raise BadInput(f"{folder} holds no dataset; make some with: bitagent bench gpu --pack RUN --states {folder}")
    return [artifacts.load(path, "collect", domain=domain) for path in paths]


def pack_states(source: Path, target: Path, domain: str, megabytes: float = CARRIED_MB) -> int:
    """The datasets of a run without their frames, thinned evenly to so many megabytes, to be carried; the bytes."""
    datasets = [Dataset.open([a.path], domain) for a in carried(source / "data", domain)]
    whole = sum(d.n_frames * _row_bytes(d) for d in datasets)
    share = min(1.0, megabytes * 1e6 / whole)
    for dataset in datasets:
        origin = dataset.parts[0].artifact
        facts = {k: origin.meta["extra"][k] for k in ("source", "task")} | {"renderer": "", "image_size": 0}
        chosen = np.unique(np.linspace(0, dataset.n_episodes - 1, max(1, int(share * dataset.n_episodes))).astype(int))
        about = Run(domain, "gpu", target.parent, int(origin.meta["seed"]), quiet=True)
        writer = DatasetWriter(target / origin.path.name, about, {"packed": origin.id}, facts, (), fresh=True)
        for number, episode in enumerate(map(dataset.episode, chosen)):
            episode.image = None
            writer.append(number, episode)
        writer.finish(len(chosen))
    return sum(file.stat().st_size for file in target.rglob("*") if file.is_file())


def _row_bytes(dataset: Dataset) -> int:
    """Of one row without its frame."""
    return 8 * int(np.prod(dataset.row_shape("state"))) + 4 * dataset.action_dim + 6
