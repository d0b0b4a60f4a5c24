"""The parts of the report. Each draws what it has into the scene's folder, or raises BadInput saying what makes it."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Mapping
from functools import partial
from textwrap import fill
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.core.settings import Measure
from stages.core.world_model import State, TaskContext, WorldModel
from stages.data.episodes import Dataset
from stages.methods import open_model
from stages.report import diagnostics, figures, results, tables
from stages.report.coverage import coverage_table
from stages.report.expert_curves import expert_curves, experts_table, find_experts
from stages.report.ledger import ledger
from stages.report.page import Chapter, Picture
from stages.report.scene import Scene, load_actor
from stages.report.tables import Table
from stages.runtime import artifacts, logs
from stages.runtime.errors import BadInput
from stages.worlds import tasks

FILM_STRIDE, FILM_PAUSE = 4, 80  # a frame of an evaluation's GIF is every fourth decision; shown for 80 ms
LEGEND = (
    "“z” compares the latents (Eq. 10), “semantic” what f_dec reads in them, “best shift” at their best common offset "
    "in time; "
)


def scores(scene: Scene) -> Chapter:
    """Every evaluation of the run, with random and the paper's values beside."""
    run = scene.run
    found = results.gather(run.root, run.domain)
    if not found:
        raise BadInput(f"no evaluation yet; make one with: {run.command('evaluate', '--task', _first_task(scene))}")
    made = {
        "scores": tables.tasks_table(found, run.domain),
        "multi-task": tables.multi_task_table(found, run.domain),
        "ablation": tables.ablation_table(found, run.domain),
        "prompts": tables.prompts_table(found),
    }
    shown = {stem: table for stem, table in made.items() if table}
    for stem, table in shown.items():
        scene.save_table(stem, table)
    scene.save_table("ledger", ledger(found, run))  # too wide for the page
    chapter = Chapter("Scores", tables=list(shown.values()))
    if bars := results.bars([r for r in found if not r.source], run.domain):
        figures.score_bars(scene.folder / "scores.png", bars)
        chapter.pictures.append(Picture("scores.png", "Normalised score: 0 is random, 1 the expert.", chart=True))
    return chapter


def transfers(scene: Scene) -> Chapter | None:
    """Scores of models carried over from other bodies (Fig. 3), and what they gained; None where there are none."""
    chapter = Chapter("Transfer")
    if table := tables.transfer_table(results.gather(scene.run.root, scene.run.domain)):
        scene.save_table("transfer", table)
        chapter.tables.append(table)
    for made in sorted(scene.run.root.glob("transfer/*/artifact.json")):
        found = artifacts.load(made.parent, "transfer", domain=scene.run.domain)
        source = made.parent.name
        with (found.path / "gain.csv").open(newline="") as file:
            header, *rows = csv.reader(file)
        chapter.tables.append(
            Table(f"From {source}", "Gain: transfer minus the same budget from scratch.", header, rows)
        )
        shutil.copyfile(found.path / "gain.png", scene.folder / f"transfer-{source}.png")
        chapter.pictures.append(Picture(f"transfer-{source}.png", f"From {source}, beside its control.", chart=True))
    return chapter if chapter.tables else None


def policies(scene: Scene) -> Chapter:
    """Best and worst evaluation episode of each policy."""
    films = _films(scene)
    if not films:
        command = scene.run.command("evaluate", "--task", _first_task(scene))
        raise BadInput(f"no evaluation with films yet; make one with: {command}")
    rows = [(word, [pair[i] for pair in films.values()]) for i, word in enumerate(("best", "worst"))]
    figures.save_gif(scene.folder / "policies.gif", figures.film(rows, columns=list(films)), FILM_PAUSE)
    picture = Picture("policies.gif", "Best and worst evaluation episode of each task.")
    return Chapter("Policies", "Each policy in the real environment, faster than real time.", pictures=[picture])


def _films(scene: Scene) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{task: frames of its policy's best and worst evaluation episode}, of those that have been filmed."""
    found = {}
    for name in tasks.task_names(scene.run.domain):
        folder = scene.run.root / "evaluation" / scene.label / name
        best, worst = folder / f"{name}-best.gif", folder / f"{name}-worst.gif"
        if best.exists() and worst.exists():
            found[name] = (figures.read_gif(best, FILM_PAUSE), figures.read_gif(worst, FILM_PAUSE))
    return found


def imagination(scene: Scene) -> Chapter:
    """Open-loop prediction: real frames above imagined ones, and the error by horizon."""
    c, dataset, folder = scene.config, scene.dataset, scene.folder
    length = c.context + c.horizon
    shown = diagnostics.open_loop(scene.model, dataset, best_windows(dataset, c.windows, length), c.context, c.horizon)
    rows = [("real", list(shown.real)), ("imagined", list(shown.predicted))]
    figures.save_gif(folder / "imagined-vs-real.gif", figures.film(rows, seen=c.context), scene.pause)
    later = np.linspace(c.context, length - 1, min(10, c.horizon)).astype(int)
    steps = np.unique([0, c.context - 1, *later])
    header = ["seen" if t < c.context else f"+{t - c.context + 1}" for t in steps]
    strips: list[tuple[str, np.ndarray]] = []
    for real, made in zip(shown.real, shown.predicted, strict=True):
        strips += [("real", real[steps]), ("imagined", made[steps])]
    figures.save_png(folder / "imagined-vs-real.png", figures.strip(strips, header))
    starts = diagnostics.draw_windows(dataset, scene.judged, c.error_windows, length, scene.run.seed)
    found = diagnostics.open_loop(scene.model, dataset, starts, c.context, c.horizon)
    summary = diagnostics.open_loop_summary(found, scene.held_out)
    scene.save_json("prediction-error", summary)
    figures.prediction_error(folder / "prediction-error.png", summary)
    better = summary["better_than_copying"]
    text = (
        f"The model looks at {c.context} frames, then predicts {c.horizon} more from the data's actions alone. "
        f"The mean of {summary['rollouts']} sampled rollouts "
        f"{f'beats copying the last frame up to step {better}' if better else 'is worse than copying the last frame'}. "
        f"{_judged_on(scene)}"
    )
    pictures = [
        Picture("imagined-vs-real.gif", "Real frames above imagined ones."),
        Picture("imagined-vs-real.png", "The same windows, by steps after the last frame seen."),
        Picture("prediction-error.png", "Error of open-loop prediction by horizon.", chart=True),
    ]
    return Chapter("Imagination", text, pictures=pictures)


def best_windows(dataset: Dataset, count: int, length: int) -> np.ndarray:
    """Windows from the middle of the best episodes, the parts of the dataset in turn: (count,) start rows."""
    info = dataset.episode_info
    ranked = []
    for part in range(len(dataset.parts)):
        mine = np.flatnonzero((info.part == part) & (info.length >= length))
        ranked.append(mine[np.argsort(-info.returns[mine], kind="stable")])
    chosen = np.array([group[i] for i in range(max(map(len, ranked))) for group in ranked if i < len(group)][:count])
    if not len(chosen):
        raise BadInput(f"no episode has {length} frames; lower visualize.horizon, or collect longer episodes")
    return info.start[chosen] + (info.length[chosen] - length) // 2


def dreams(scene: Scene) -> Chapter:
    """Decoded text imaginations of every prompt, what its policy expects, and the gates."""
    names, steps, folder = list(scene.prompts), scene.config.dream_steps, scene.folder
    text = _text_dreams(scene, steps)
    rows = [("text\nimagination", list(text))]
    expected = {name: found[0] for name in names if (found := _policy_dream(scene, name, steps))}
    if expected:
        rows.append(("policy,\nimagined", [expected.get(name, np.full_like(text[0], 255)) for name in names]))
    figures.save_gif(folder / "dreams.gif", figures.film(rows, columns=[n[:20] for n in names]), scene.pause)
    at = np.linspace(0, steps, min(10, steps + 1)).astype(int)
    strips = [(fill(name, 18), clip[at]) for name, clip in zip(names, text, strict=True)]
    figures.save_png(folder / "dreams.png", figures.strip(strips, [str(t) for t in at]))
    asked = "; ".join(
        f"{name}: “{prompt}”" if name != prompt else f"“{prompt}”" for name, prompt in scene.prompts.items()
    )
    below = "; below, what its policy expects from an episode's first frame" if expected else ""
    pictures = [
        Picture("dreams.gif", f"Decoded text imagination of each prompt{below}."),
        Picture("dreams.png", "The same text imaginations, by step."),
    ]
    if scene.contexts.gates.shape[1]:  # L fusion layers; the baselines have none
        gates = {n: g.flatten(1).mean(1).tolist() for n, g in zip(names, scene.contexts.gates.cpu(), strict=True)}
        scene.save_json("gates", {"prompts": scene.prompts, "gates": gates})
        figures.gate_bars(folder / "gates.png", {n[:24]: g for n, g in gates.items()})
        pictures.append(Picture("gates.png", "Gate of each fusion layer (Eq. 5).", chart=True))
    if films := _films(scene):
        figures.save_png(folder / "real-above-text-imagination.png", _real_above_text(scene, films))
        caption = "Real frames of a policy above the text imagination of its prompt, four decisions apart (Fig. 4)."
        pictures.append(Picture("real-above-text-imagination.png", caption))
    about = f"Text imagination (Eq. 7, 8), decoded. Prompts: {asked}."
    return Chapter("What the model thinks a prompt looks like", about, pictures=pictures)


def _real_above_text(scene: Scene, films: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Two rows a task: its policy's best episode past getting up, and the decoded text imagination."""
    made = dict(zip(scene.prompts, _text_dreams(scene, 9 * FILM_STRIDE), strict=True))
    strips: list[tuple[str, np.ndarray]] = []
    for name, (best, _) in films.items():
        middle = max(0, min(40, len(best) - 10))
        strips += [(f"{name}\nreal", best[middle : middle + 10]), ("imagined", made[name][::FILM_STRIDE])]
    return figures.strip(strips)


def _text_dreams(scene: Scene, steps: int) -> np.ndarray:
    """(K, steps+1, 3, 64, 64): along the policy's own actions where the model reads them and there is a policy."""
    actions = torch.zeros(len(scene.prompts), steps, scene.model.dim_action, device=scene.run.device)
    if scene.model.config.text_actions == "policy":
        for k, name in enumerate(scene.prompts):
            if found := _policy_dream(scene, name, steps):
                actions[k] = found[1][0]
    return diagnostics.text_dream(scene.model, scene.contexts, actions)


def _policy_dream(scene: Scene, name: str, steps: int) -> tuple[np.ndarray, Tensor] | None:
    """Frames and actions of the prompt's policy in its own model; None where no policy was trained."""
    artifact = scene.policies.get(scene.prompts[name])
    if artifact is None:
        return None
    model = open_model(artifact, scene.run.device)
    with torch.no_grad():
        context = model.task(artifact.tensors("prompt", scene.run.device)["embedding"])
    first = int(scene.dataset.episode_start[0])
    return diagnostics.policy_dream(model, load_actor(artifact, model), context, scene.dataset, first, steps)


# ---------------------------------------------------------------------------- reward


def rewards(scene: Scene) -> Chapter:
    """The learned reward beside the true one along episodes, and how well it ranks it over all sources."""
    c, dataset = scene.config, scene.dataset
    count = c.reward_episodes if scene.judge_reward else c.reward_glance
    episodes = diagnostics.choose_episodes(dataset, scene.judged, count)
    functions = {name: partial(_reward, scene.model, measure) for name, measure in scene.model.measures.items()}
    shown = _policy_variant(scene)
    learned = diagnostics.episode_rewards(scene.model, dataset, episodes, scene.contexts, functions, c.reward_horizon)
    similarity = _similarity(scene, episodes, learned[shown].shape[-1])
    about: dict[str, Any] = {}
    traces = {}
    for k, task in enumerate(tasks.task_names(scene.run.domain)):  # the first prompts are the tasks
        mine = {name: value[k] for name, value in learned.items()} | {"similarity": similarity[k]}
        about[task] = diagnostics.reward_diagnostics(
            dataset, task, episodes, mine, c.reward_windows, scene.run.seed, scene.held_out
        )
        traces[task] = _traces(dataset, task, episodes, mine[shown])
    scene.save_json("reward", about)
    figures.reward_traces(scene.folder / "reward.png", traces)
    table = _reward_table(about, shown)
    scene.save_table("reward-rank", table)
    picture = Picture("reward.png", f"Learned reward ({shown}) and true reward along whole episodes.", chart=True)
    text = f"No reward is shown to the agent; here it is judged. {_judged_on(scene)}"
    return Chapter("Learned reward", text, [table], [picture])


def _judged_on(scene: Scene) -> str:
    if scene.held_out:
        return "The episodes were held out: the model was not trained on them."
    return "The episodes are those the model was trained on: none is held out."


def _reward(model: WorldModel, measure: Measure, task: TaskContext, state: State, action: Tensor) -> Tensor:
    return model.reward(task, state, action, measure)


def _policy_variant(scene: Scene) -> str:
    """The variant that the policies were trained on; the first of them where there is no policy."""
    for policy in scene.policies.values():
        behave = policy.meta["config"]["behave"]
        for name, measure in scene.model.measures.items():
            if (measure.align, measure.space) == (behave.get("align"), behave.get("space")):
                return name
    return next(iter(scene.model.measures))


def _similarity(scene: Scene, episodes: np.ndarray, length: int) -> np.ndarray:
    """The baseline without a world model: cosine of each frame's embedding and the prompt's, (K, E, length)."""
    rows = scene.dataset.episode_info.start[episodes][:, None] + np.arange(1, length + 1)
    e = F.normalize(torch.from_numpy(scene.dataset.rows("embedding", rows)).float(), dim=-1)
    return torch.einsum("etd,kd->ket", e, scene.text.cpu()).numpy()


def _traces(
    dataset: Dataset, task: str, episodes: np.ndarray, learned: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{episode: (learned, true)} of the best episodes of the task's expert, of task-free data, and of another task."""
    info = dataset.episode_info
    kinds: dict[str, list[int]] = {"expert": [], "random": [], "other": []}
    for index, number in enumerate(episodes):
        part = dataset.parts[int(info.part[number])]
        kinds["expert" if part.task == task else "other" if part.task else "random"].append(index)
    found = {}
    for group in kinds.values():
        if group:
            index = max(group, key=lambda i: info.returns[episodes[i]])
            number = int(episodes[index])
            rows = info.start[number] + np.arange(1, learned.shape[1] + 1)
            name = diagnostics.source_name(dataset, int(info.part[number]), task)
            true = diagnostics.true_reward(dataset.domain, task, dataset.rows("state", rows))
            found[name] = (learned[index], true)
    return found


def _reward_table(about: Mapping[str, Mapping[str, Any]], shown: str) -> Table:
    """Rank correlations of every variant and the mean of the one shown by source, one row a task."""
    names = list(next(iter(about.values()))["spearman"])
    columns = ["task", *(f"rank correlation: {n}" for n in names)]
    columns += [f"mean of {shown}: {n}" for n in ("expert", "other tasks", "random and explore")]
    rows = []
    for task, found in about.items():
        sources = found["by_source"]
        groups = {
            "expert": [s for s in sources if s in ("expert", "imported")],
            "other": [s for s in sources if " of " in s],
            "random": [s for s in sources if s in ("random", "explore")],
        }
        means = [_pooled([sources[s] for s in group], shown) for group in groups.values()]
        ranks = ["" if found["spearman"][n] is None else f"{found['spearman'][n]:.2f}" for n in names]
        rows.append([task, *ranks, *means])
    first = next(iter(about.values()))
    legend = LEGEND if "z" in names else ""
    unseen = " that the model was not trained on" if first["held_out"] else ""
    note = (
        f"Spearman's rank correlation with the true reward over {first['windows']} windows of "
        f"{first['frames_a_window']} frames drawn evenly from all sources, of {first['episodes']} episodes{unseen}. "
        f"{legend}"
        "“similarity” is the plain cosine of the backbone's embeddings of frames and prompt, without a world model. "
        "By source and behaviour: reward.json."
    )
    return Table(
        "Does the learned reward rank the true one?", note, columns, rows, [{"task": t, **f} for t, f in about.items()]
    )


def _pooled(sources: list[Mapping[str, Any]], name: str) -> str:
    if not sources:
        return ""
    weights = [s["windows"] for s in sources]
    return f"{np.average([s['mean'][name] for s in sources], weights=weights):.3f}"


# ---------------------------------------------------------------------------- training, data


def training(scene: Scene) -> Chapter:
    """Curves of every metric that any stage logged."""
    found = logs.grouped(scene.run.root)
    if not found:
        raise BadInput(f"no training log yet; make one with: {scene.run.command('pretrain')}")
    for folder, named in found.items():
        figures.curves(scene.folder / f"curves-{folder}.png", named)
    pictures = [Picture(f"curves-{folder}.png", f"Metrics of {folder}/ by step.", chart=True) for folder in found]
    return Chapter("Training", pictures=pictures)


def experts(scene: Scene) -> Chapter | None:
    """How the experts learned whose replays are in the data; None where there is none."""
    found = find_experts(scene.run.root)
    table = experts_table(found)
    if table is None:
        return None
    scene.save_table("experts", table)
    figures.learning_curves(scene.folder / "experts.png", expert_curves(found))
    about = f"Score of every training episode, exploration noise included, and its mean over {figures.SMOOTH}."
    return Chapter("Experts", tables=[table], pictures=[Picture("experts.png", about, chart=True)])


def data(scene: Scene) -> Chapter:
    """A contact sheet of every dataset, and how much each covers."""
    run = scene.run
    paths = sorted(f.parent for f in run.root.glob("data/*/artifact.json") if not f.parent.name.startswith("."))
    if not paths:
        raise BadInput(f"no data yet; make it with: {run.command('collect')}")
    chapter = Chapter("Data", "First, best, median and worst episode of each dataset, with its return.")
    datasets = {path.name: Dataset.open([path], run.domain) for path in paths}
    for name, dataset in datasets.items():
        if dataset.has("image"):
            figures.save_png(scene.folder / f"data-{name}.png", figures.contact_sheet(dataset))
            about = f"{name}: {dataset.n_episodes} episodes, {dataset.n_frames} frames."
            chapter.pictures.append(Picture(f"data-{name}.png", about))
    if table := coverage_table(datasets):
        scene.save_table("coverage", table)
        chapter.tables.append(table)
    return chapter


def _first_task(scene: Scene) -> str:
    return tasks.task_names(scene.run.domain)[0]


PARTS = (scores, transfers, policies, imagination, dreams, rewards, training, experts, data)
