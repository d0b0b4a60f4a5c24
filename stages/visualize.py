"""Visualize: what there is to look at in a run, as pictures, tables and one self-contained page.

    bitagent visualize --preset walker
    bitagent visualize --preset walker --reward      the learned reward judged on more episodes, and imagination
    bitagent visualize --paper --scale laptop        every domain: Tables 1 and 2, Fig. 3 and 4
    bitagent visualize --preset walker --serve       a page that asks for prompts and shows what the model makes of them

Reads everything under runs/<run>/; writes runs/<run>/report/: report.html and every picture and table in it.
The paper's page is runs/paper-<scale>/report/, from the runs of that scale beside it (stages/report/paper_page.py).
The parts are in stages/report/chapters.py. One whose input is missing is left out, naming the command that makes it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from stages.report import paper_page, results
from stages.report.chapters import PARTS
from stages.report.lineage import provenance
from stages.report.page import Chapter, write_report
from stages.report.scene import Scene, ViewConfig, find_artifacts
from stages.runtime import artifacts, logs, storage
from stages.runtime.artifacts import Artifact, Recipe
from stages.runtime.config import Run
from stages.runtime.errors import BadInput


class Config(ViewConfig):
    """Section `visualize` of the preset; fields in stages/report/scene.py, defaults in presets/paper.yaml."""


def run(config: Config, run: Run, *, method: str = "bitagent", reward: bool = False) -> Artifact:
    """Make the report of a run.

    Args:
        method: whose model and policies are shown (of `run.seed`); scores are those of every method and seed.
        reward: judge the learned reward on `reward_episodes` episodes instead of `reward_glance`, and what imagination
            says of other actions than the data's.

    Raises BadInput when there is nothing to show.
    """
    path, made = run.root / "report", list(find_artifacts(run))
    record = {"visualize": config.model_dump(), "method": method, "reward": reward}
    record |= {"from": {str(a.path.relative_to(run.root)): a.id for a in made}, "logs": logs.sizes(run.root)}
    recipe = Recipe(run, path, "visualize", record, made)
    if found := unchanged(recipe):
        return found
    with storage.locked(path):
        write_run_report(Scene(config, run, method, reward, path), recipe)
    return artifacts.load(path, "visualize")


def run_paper(run: Run) -> Artifact:
    """Make the page of the whole paper from every run of this scale beside `run.root`.

    Raises BadInput when no policy was scored in any of them.
    """
    path, beside = run.root / "report", run.root.parent
    runs = paper_page.find_runs(beside, run.scale)
    scored = [result for domain, root in runs.items() for result in results.gather(root, domain)]
    if not scored:
        raise BadInput(f"no policy was scored at scale {run.scale} yet; first: make reproduce SCALE={run.scale}")
    reports = paper_page.find_reports(runs)
    made = list({a.id: a for a in (*(r.artifact for r in scored), *reports.values())}.values())
    record = {"from": {os.path.relpath(a.path, beside): a.id for a in made}}
    recipe = Recipe(run, path, "visualize", record, made)
    if found := unchanged(recipe):
        return found
    with storage.locked(path), recipe.writing() as draft:
        chapters = paper_page.chapters(draft, scored, reports)
        facts = {"scale": run.scale, "made": time.strftime("%Y-%m-%d %H:%M"), "domains": ", ".join(runs)}
        last = [a for a in made if a.meta["stage"] == "evaluate"]
        write_report(draft, "BiTAgent: the paper's tables and figures", facts, chapters, provenance(last, beside))
    return artifacts.load(path, "visualize")


def serve(config: Config, run: Run, *, method: str, port: int | None, check: Callable[[str], str]) -> None:
    """Show what the method's model makes of any text, on a page of this machine, until Ctrl-C.

    Args:
        check: strips a prompt, or raises BadInput.

    Raises BadInput when the model is missing.
    """
    from stages.report.playground import serve_page

    serve_page(Scene(config, run, method, judge_reward=False, folder=run.root / "report"), port, check)


def unchanged(recipe: Recipe) -> Artifact | None:
    """The report that is there, if it shows just this. A report holds nothing of its own: any other is replaced."""
    run, path = recipe.run, recipe.path
    if run.fresh or not (path / "artifact.json").exists():
        return None
    found = artifacts.load(path, "visualize")
    if (found.meta["seed"], found.meta["config"]) != (run.seed, storage.plain(recipe.config)):
        return None
    if not run.quiet:
        print(f"reusing {path}: nothing changed since it was made")
    return artifacts.current(found)


def write_run_report(scene: Scene, recipe: Recipe) -> None:
    """Every part that has its input, then the page."""
    run = scene.run
    with recipe.writing() as draft:
        scene.folder = draft
        chapters = [chapter for part in PARTS if (chapter := attempt(part, scene))]
        if not chapters:
            raise BadInput(f"there is nothing to show in {run.root} yet; begin with: {run.command('collect')}")
        facts = {"scale": run.scale, "method": scene.method, "seed": str(run.seed)}
        facts |= {"made": time.strftime("%Y-%m-%d %H:%M")}
        facts |= {name: version for name, version in artifacts.versions().items() if name in ("torch", "mujoco")}
        last = [a for a in recipe.inputs if a.meta["stage"] == "evaluate"] or recipe.inputs[-1:]
        write_report(draft, f"BiTAgent: {run.domain}", facts, chapters, provenance(last, run.root.parent))


def attempt(part: Callable[[Scene], Chapter | None], scene: Scene) -> Chapter | None:
    """One part of the report; when its input is missing, say which command makes it and go on."""
    try:
        return part(scene)
    except BadInput as error:
        if not scene.run.quiet:
            print(f"left out, {part.__name__}: {error}")
        return None
