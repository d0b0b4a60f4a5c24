"""Transfer: a model trained on one body adapts to another (Section 4.3, Fig. 3).

    bitagent transfer --src walker --dst stickman
    bitagent transfer --src walker --dst stickman --control      the same budget from scratch

Reads runs/<src>-<scale>/model/<method>-s<seed> and the target's data and embeddings; writes
runs/<dst>-<scale>/model/transfer-<src>-s<seed>, on which `behave` and `evaluate` learn and score the tasks with
--method transfer-<src>. `compare` then writes runs/<dst>-<scale>/transfer/<src>: the gain over the control.

What reads embeddings is carried over too, though the offline backbones of two bodies have little in common unless they
were trained from the same seed (docs/transfer.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from stages.backbones.tuning import MllmConfig, mllm_of
from stages.core.settings import ModelConfig
from stages.core.world_model import WorldModel
from stages.data.episodes import Dataset
from stages.data.inputs import find_inputs
from stages.pretrain import Job, Sections, train_or_reuse
from stages.report import results, tables
from stages.report.page import save_table
from stages.runtime import artifacts, storage
from stages.runtime.artifacts import Artifact, Recipe, load_weights
from stages.runtime.config import Run, Section
from stages.runtime.errors import BadInput
from stages.runtime.names import method_option
from stages.worlds import tasks

BODY = (
    "rssm.gru.inp.0.weight",
    "text_dynamics.gru.inp.0.weight",
    "rssm.imagination.inp.0.weight",
)  # their last columns read the action: they are the body's


class Config(Section):
    """Section `transfer` of the preset; defaults and comments in presets/paper.yaml."""

    updates: int


def method_name(method: str, src: str, control: bool) -> str:
    """What behave and evaluate call the adapted model; one control, at equal budget, serves every source."""
    prefix = "" if method == "bitagent" else f"{method}-"
    return f"{prefix}transfer-{'control' if control else src}"


def run(
    config: Config,
    sections: Sections,
    run: Run,
    *,
    src: str,
    method: str = "bitagent",
    control: bool = False,
    source: Path | None = None,
) -> Artifact:
    """Adapt the source's model to the run's domain and save it as a model artifact there.

    Args:
        sections: the target's; `pretrain.updates` is replaced by the transfer's. A backbone the source tuned goes on
            from there when both runs use the same; the offline one is each run's own, and starts anew.
        run: of the target domain.
        src: the source domain; its model is that of `run.seed`.
        control: train the same model at the same budget from scratch instead.
        source: the source's run folder; default: beside the target's, runs/<src>-<scale>.

    Raises:
        BadInput: no source model, one of other sizes, or embeddings of another width.
    """
    tasks.check_domain(src)
    if src == run.domain:
        raise BadInput(f"--src and --dst are both {src}: transfer needs two bodies")
    training = sections.pretrain.model_copy(update={"updates": config.updates})
    sections = replace(sections, pretrain=training)
    data, embeddings = find_inputs(run, training.backbone)
    options = ("--src", src, "--dst", run.domain, "--scale", run.scale, "--seed", str(run.seed), *method_option(method))
    command = " ".join(["bitagent", "transfer", *options, *(["--control"] if control else [])])
    label = method_name(method, src, control)
    job = Job(sections, run, method, data, embeddings, command, label)
    if control:
        return train_or_reuse(job)
    found = load_source(run, src, method, source)
    width = Dataset.open([a.path for a in data], run.domain, [a.path for a in embeddings]).dim_embedding
    check_fit(found, sections.model, width)
    check_tuning(found, job.mllm)
    init = partial(carry_over, tensors=found.tensors("model"), where=found.path)
    return train_or_reuse(replace(job, about={"source": src}, source=found, init=init))


def load_source(run: Run, src: str, method: str, source: Path | None) -> Artifact:
    """The source domain's model of the same method and seed."""
    there = Run(src, run.scale, source or run.root.parent / f"{src}-{run.scale}", run.seed)
    made_by = there.command("pretrain", "--method", method, "--seed", str(run.seed))
    path = there.root / "model" / f"{method}-s{run.seed}"
    return artifacts.load(path, "pretrain", domain=src, made_by=made_by)


def check_fit(source: Artifact, model_config: ModelConfig, dim_embedding: int) -> None:
    """Everything but the action must have the same size. Raises BadInput naming what differs."""
    there = source.meta["config"]["model"]
    for key, value in model_config.model_dump().items():
        if there.get(key) != value:
            raise BadInput(
                f"{source.path} has model.{key} {there.get(key)}, the target's preset has {value}; "
                f"use --set model.{key}={there.get(key)}"
            )
    extra = source.meta["extra"]
    if extra["dim_embedding"] != dim_embedding:
        raise BadInput(
            f"{source.path} reads embeddings of width {extra['dim_embedding']}, the target's are {dim_embedding} wide; "
            f"embed the target's data with the source's backbone ({extra['backbone']})"
        )


def check_tuning(source: Artifact, mllm: MllmConfig) -> None:
    """The same of the backbone must be trained in both. Raises BadInput saying what the source trained."""
    there = mllm_of(source)
    if there.record != mllm.record:
        sizes = f" --set mllm.last_k={there.last_k} --set mllm.lora_rank={there.lora_rank}" if there.in_loop else ""
        raise BadInput(
            f"{source.path} was trained with another setting of section mllm; use --set mllm.train={there.train}{sizes}"
        )


def carry_over(model: WorldModel, tensors: Mapping[str, Tensor], where: Path) -> None:
    """Load all weights of the source but the action's input columns, which stay as initialised."""
    own, carried = model.state_dict(), dict(tensors)
    for name in set(BODY) & set(own):
        shared = own[name].shape[1] - model.dim_action
        carried[name] = torch.cat([tensors[name][:, :shared], own[name][:, shared:]], 1)
    load_weights(model, carried, where)


# ---------------------------------------------------------------------------- comparison


def compare(run: Run, *, src: str, method: str = "bitagent") -> Artifact | None:
    """Write the table of transfer beside its control, over all seeds found; None while one of them is missing.

    Raises BadInput when neither was evaluated.
    """
    names = {control: method_name(method, src, control) for control in (False, True)}
    found = [r for r in results.gather(run.root, run.domain) if r.single_task and r.method in names.values()]
    shared = [
        t for t in tasks.task_names(run.domain) if {r.method for r in found if r.task == t} == set(names.values())
    ]
    if not shared:
        if not run.quiet:
            adapted, control = (any(r.method == name for r in found) for name in names.values())
            option = " --control" if adapted and not control else ""
            print(f"no comparison yet; first: bitagent transfer --src {src} --dst {run.domain}{option}")
        return None
    mine = [r for r in found if r.task in shared]
    table = tables.gain_table(mine, run.domain, shared, names[False], names[True])
    path = run.root / "transfer" / method_name(method, src, False).replace("transfer-", "")
    record = {"from": {str(r.artifact.path.relative_to(run.root)): r.artifact.id for r in mine}}
    recipe = Recipe(run, path, "transfer", record, list({r.artifact.id: r.artifact for r in mine}.values()))
    with storage.locked(path), recipe.writing({"rows": table.numbers}) as draft:
        save_table(draft, "gain", table)
    if not run.quiet:
        print(tables.markdown(table))
    return artifacts.load(path, "transfer")
