"""The parts of the report. Each draws what it has into the scene's folder, or raises BadInput saying what makes it."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.data.episodes import Dataset
from stages.methods import open_model
from stages.policies.policy import load_actor
from stages.report import aggregate, counterfactual, diagnostics, figures, promises, results, tables
from stages.report.coverage import coverage_table
from stages.report.expert_curves import expert_curves, experts_table, find_experts
from stages.report.ledger import ledger
from stages.report.page import Chapter, Chart, save_frames, save_json, save_tables
from stages.report.results import Result
from stages.report.scene import Scene
from stages.report.tables import Table
from stages.runtime import artifacts, logs
from stages.runtime.errors import BadInput
from stages.worlds import tasks

LARGE = 4  # times the size of what the policy sees
FILM_STRIDE, FILM_PAUSE = 4, 80  # a frame of an evaluation's GIF is every fourth decision; shown for 80 ms
FIG_4 = "real-above-text-imagination.png"
KINDS = ("expert", "other tasks", "random and explore")  # of sources, as a task sees them
LEGEND = (
    "“z” compares the latents (Eq. 10), “relative” what f_dec reads in them less what all videos share, "
    "“decoded” what the image decoder first makes of them, likewise, “both” the mean of these two; "
)


def scores(scene: Scene) -> Chapter:
    """Every evaluation of the run, with random and the paper's values beside."""
    run = scene.run
    found = results.gather(run.root, run.domain)
    if not found:
        raise BadInput(f"no evaluation yet; make one with: {_evaluate_command(scene)}")
    made = {
        "scores": tables.tasks_table(found, run.domain),
        "zero-shot": tables.zero_shot_table(found),
        "multi-task": tables.multi_task_table(found, run.domain),
        "ablation": tables.ablation_table(found, run.domain),
        "prompts": tables.prompts_table(found),
    }
    chapter = Chapter("Scores", tables=save_tables(scene.folder, made))
    compare_methods(scene.folder, chapter, "aggregate", results.trained_for(found))
    compare_methods(scene.folder, chapter, "aggregate-multi-task", [r for r in found if r.multi_task])
    save_tables(scene.folder, {"ledger": ledger(found, run)})  # too wide for the page
    return chapter


def compare_methods(folder: Path, chapter: Chapter, stem: str, found: Sequence[Result]) -> None:
    """Add methods over tasks and seeds to a chapter, where there are two with two seeds of every task."""
    compared = results.comparable(found)
    if not (table := tables.aggregate_table(compared)):
        return
    chapter.tables += save_tables(folder, {stem: table})
    ours = compared["bitagent"]
    better = {m: aggregate.probability_of_improvement(ours, s) for m, s in compared.items() if m != "bitagent"}
    panels = {
        "interquartile mean": {m: aggregate.interquartile_mean(s) for m, s in compared.items()},
        "BiTAgent is better": better,
    }
    profiles = {m: aggregate.profile(s) for m, s in compared.items()}
    files = figures.aggregates(folder / f"{stem}.png", panels, profiles)
    chapter.charts.append(Chart(tuple(file.name for file in files), "Over tasks and seeds, with 95 % intervals."))


def transfers(scene: Scene) -> Chapter | None:
    """Scores of models carried over from other bodies (Fig. 3), and what they gained; None where there are none."""
    root, domain = scene.run.root, scene.run.domain
    made = {"transfer": tables.transfer_table(results.gather(root, domain))}
    chapter = Chapter("Transfer", tables=save_tables(scene.folder, made))
    for found in artifacts.find(root, "transfer/*", "transfer", domain=domain):
        source = found.path.name
        with (found.path / "gain.csv").open(newline="") as file:
            header, *rows = csv.reader(file)
        note = "Gain: transfer minus the same budget from scratch."
        chapter.tables.append(Table(f"From {source}", note, header, rows))
    return chapter if chapter.tables else None


def policy(scene: Scene) -> Chapter:
    """The best evaluation episode of each task, large, with the score; then the best beside the worst."""
    films = _films(scene)
    if not films:
        raise BadInput(f"no evaluation with films yet; make one with: {_evaluate_command(scene)}")
    chapter = Chapter("The policy", f"{scene.method}, seed {scene.run.seed}, in the real environment.")
    for name, found in films.items():
        row = found.row
        score = f"{row['score']:.2f} ± {row['stderr']:.2f} over {row['episodes']} episodes (0: random, 1: expert)"
        about = f"{name}: score {score}. The best episode."
        film = found.best.repeat(LARGE, 2).repeat(LARGE, 3).transpose(0, 2, 3, 1)
        chapter.pictures.append(replace(save_frames(scene.folder, f"{name}.gif", about, film, FILM_PAUSE), large=True))
    rows = [("best", [found.best for found in films.values()]), ("worst", [found.worst for found in films.values()])]
    film, about = figures.film(rows, columns=list(films)), "Best and worst evaluation episode of each task."
    chapter.pictures.append(save_frames(scene.folder, "policies.gif", about, film, FILM_PAUSE))
    return chapter


@dataclass(frozen=True)
class Filmed:
    """A row of an evaluation, and frames of its best and its worst episode."""

    row: dict[str, Any]
    best: np.ndarray
    worst: np.ndarray


def _films(scene: Scene) -> dict[str, Filmed]:
    """{task: its evaluation}, of those that have been filmed.

    A policy for the one task comes before one for several.
    """
    label, domain = scene.label, scene.run.domain
    made = artifacts.find(scene.run.root, f"evaluation/{label}/*", "evaluate", domain=domain)
    found = {}
    for evaluation in sorted(made, key=lambda a: -len(a.meta["extra"]["rows"])):
        rows = evaluation.meta["extra"]["rows"]
        of_tasks = evaluation.path.name == "+".join(row["task"] for row in rows)  # not of a free prompt
        for row in rows if of_tasks else []:
            files = [evaluation.path / f"{row['task']}-{word}.gif" for word in ("best", "worst")]
            if all(file.exists() for file in files):
                found[row["task"]] = Filmed(row, *(figures.read_gif(file, FILM_PAUSE) for file in files))
    return {name: found[name] for name in tasks.task_names(domain) if name in found}


def imagination(scene: Scene) -> Chapter:
    """Open-loop prediction: real frames above imagined ones, and the error by horizon."""
    c, dataset, folder = scene.config, scene.dataset, scene.folder
    length = c.context + c.horizon

    # good episodes, to look at
    best = diagnostics.best_windows(dataset, c.windows, length)
    shown = diagnostics.open_loop(scene.model, dataset, best, c.context, c.horizon)
    film = figures.film([("real", list(shown.real)), ("imagined", list(shown.predicted))], seen=c.context)
    later = np.linspace(c.context, length - 1, min(10, c.horizon)).astype(int)
    steps = np.unique([0, c.context - 1, *later])
    header = ["seen" if t < c.context else f"+{t - c.context + 1}" for t in steps]
    pairs = zip(shown.real, shown.predicted, strict=True)
    strips = [row for real, made in pairs for row in (("real", real[steps]), ("imagined", made[steps]))]

    # episodes drawn evenly, to measure
    starts = diagnostics.draw_windows(dataset, scene.judged, c.error_windows, length, scene.run.seed)
    found = diagnostics.open_loop(scene.model, dataset, starts, c.context, c.horizon)
    summary = diagnostics.open_loop_summary(found, scene.held_out)
    save_json(folder, "prediction-error", summary)
    better = summary["better_than_copying"]
    verdict = f"beats copying the last frame up to step {better}" if better else "is worse than copying the last frame"
    text = (
        f"The model looks at {c.context} frames, then predicts {c.horizon} more from the data's actions alone. "
        f"The mean of {summary['rollouts']} sampled rollouts {verdict}. {_judged_on(scene)}"
    )
    error = "Error of open-loop prediction by horizon."
    below = "The same windows, by steps after the last frame seen."
    pictures = [
        save_frames(folder, "imagined-vs-real.gif", "Real frames above imagined ones.", film, scene.pause),
        save_frames(folder, "imagined-vs-real.png", below, figures.strip(strips, header)),
    ]
    charts = [_chart(scene, "prediction-error.png", error, figures.prediction_error, summary)]
    return Chapter("Imagination", text, pictures=pictures, charts=charts)


def dreams(scene: Scene) -> Chapter:
    """Decoded text imaginations of every prompt, what its policy expects, and the gates."""
    names, steps = list(scene.prompts), scene.config.dream_steps
    text = _text_dreams(scene, steps)
    asked = "; ".join(f"“{p}”" if name == p else f"{name}: “{p}”" for name, p in scene.prompts.items())
    about = f"Text imagination (Eq. 7, 8), decoded. Prompts: {asked}."
    chapter = Chapter("What the model thinks a prompt looks like", about)

    # a film of the prompts side by side, with what their policies expect below
    caption, rows = "Decoded text imagination of each prompt", [("text\nimagination", list(text))]
    expected = {name: found[0] for name in names if (found := _policy_dream(scene, name, steps))}
    if expected:
        caption += "; below, what its policy expects from an episode's first frame"
        rows.append(("policy,\nimagined", [expected.get(name, np.full_like(text[0], 255)) for name in names]))
    film = figures.film(rows, columns=[n[:20] for n in names])
    chapter.pictures.append(save_frames(scene.folder, "dreams.gif", f"{caption}.", film, scene.pause))

    # the same as strips
    at = np.linspace(0, steps, min(10, steps + 1)).astype(int)
    strips = [(fill(name, 18), clip[at]) for name, clip in zip(names, text, strict=True)]
    sheet = figures.strip(strips, [str(t) for t in at])
    chapter.pictures.append(save_frames(scene.folder, "dreams.png", "The same text imaginations, by step.", sheet))

    # the gates of the L fusion layers; the baselines have none
    if scene.contexts.gates.shape[1]:
        gates = {n: g.flatten(1).mean(1).tolist() for n, g in zip(names, scene.contexts.gates.cpu(), strict=True)}
        save_json(scene.folder, "gates", {"prompts": scene.prompts, "gates": gates})
        caption, short = "Gate of each fusion layer (Eq. 5).", {n[:24]: g for n, g in gates.items()}
        chapter.charts.append(_chart(scene, "gates.png", caption, figures.gate_bars, short))

    # Fig. 4
    if films := _films(scene):
        caption = "Real frames of a policy above the text imagination of its prompt, four decisions apart (Fig. 4)."
        chapter.pictures.append(save_frames(scene.folder, FIG_4, caption, _real_above_text(scene, films)))
    return chapter


def _real_above_text(scene: Scene, films: Mapping[str, Filmed]) -> np.ndarray:
    """Two rows a task: its policy's best episode past getting up, and the decoded text imagination."""
    made = dict(zip(scene.prompts, _text_dreams(scene, 9 * FILM_STRIDE), strict=True))
    strips: list[tuple[str, np.ndarray]] = []
    for name, found in films.items():
        best = found.best
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
    learned = scene.policies.get(scene.prompts[name])
    if learned is None:
        return None
    artifact = learned.artifact
    model = open_model(artifact, scene.run.device)
    with torch.no_grad():
        context = model.task(artifact.tensors("prompt", scene.run.device)["embedding"][learned.index, None])
    first = int(scene.dataset.episode_start[~scene.dataset.episode_info.cut][0])
    return diagnostics.policy_dream(model, load_actor(artifact, model), context, scene.dataset, first, steps)


# ---------------------------------------------------------------------------- reward


def rewards(scene: Scene) -> Chapter:
    """The learned reward beside the true one along episodes, and how well it ranks it over all sources."""
    c, dataset = scene.config, scene.dataset
    count = c.reward_episodes if scene.judge_reward else c.reward_glance
    episodes = diagnostics.choose_episodes(dataset, scene.judged, count)
    learned = diagnostics.episode_rewards(scene.model, dataset, episodes, scene.contexts, c.reward_horizon)
    shown = scene.policy_space
    similarity = _similarity(scene, episodes, learned[shown].shape[-1])

    # each task apart: how well every variant ranks the true reward, and the one shown along good episodes
    about: dict[str, Any] = {}
    traces = {}
    for k, task in enumerate(tasks.task_names(scene.run.domain)):  # the first prompts are the tasks
        mine = {name: value[k] for name, value in learned.items()} | {"similarity": similarity[k]}
        about[task] = diagnostics.reward_diagnostics(
            dataset, task, episodes, mine, c.reward_windows, scene.run.seed, scene.held_out
        )
        traces[task] = _traces(dataset, task, episodes, mine[shown])

    save_json(scene.folder, "reward", about)
    made = save_tables(scene.folder, {"reward-rank": _reward_table(about, shown)})
    caption = f"Learned reward ({shown}) and true reward along whole episodes."
    chart = _chart(scene, "reward.png", caption, figures.reward_traces, traces)
    text = f"No reward is shown to the agent; here it is judged. {_judged_on(scene)}"
    return Chapter("Learned reward", text, made, charts=[chart])


def _judged_on(scene: Scene) -> str:
    if scene.held_out:
        return "The episodes were held out: the model was not trained on them."
    return "The episodes are those the model was trained on: none is held out."


def _similarity(scene: Scene, episodes: np.ndarray, length: int) -> np.ndarray:
    """The baseline without a world model: cosine of each frame's embedding and the prompt's, (K, E, length)."""
    rows = scene.dataset.episode_info.start[episodes][:, None] + np.arange(1, length + 1)
    e = F.normalize(torch.from_numpy(scene.dataset.rows("embedding", rows)).float(), dim=-1)
    return torch.einsum("etd,kd->ket", e, scene.text.cpu()).numpy()


def _kind(source: str) -> str:
    """Which of KINDS a source is for the task that named it, see `diagnostics.source_name`."""
    return KINDS[0] if source in ("expert", "imported") else KINDS[1] if " of " in source else KINDS[2]


def _traces(
    dataset: Dataset, task: str, episodes: np.ndarray, learned: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{source: (learned, true)} along the best episode of each kind."""
    info = dataset.episode_info
    names = [diagnostics.source_name(dataset, int(part), task) for part in info.part[episodes]]
    found = {}
    for kind in KINDS:
        mine = [i for i, name in enumerate(names) if _kind(name) == kind]
        if mine:
            best = mine[int(np.argmax(info.returns[episodes[mine]]))]
            rows = info.start[episodes[best]] + np.arange(1, learned.shape[1] + 1)
            true = diagnostics.true_reward(dataset.domain, task, dataset.rows("state", rows))
            found[names[best]] = (learned[best], true)
    return found


def _reward_table(about: Mapping[str, Mapping[str, Any]], shown: str) -> Table:
    """Rank correlations of every variant and the mean of the one shown by source, one column a task."""
    first = next(iter(about.values()))
    rows = []
    for name in first["spearman"]:
        ranks = [found["spearman"][name] for found in about.values()]
        rows.append([f"rank correlation: {name}", *("" if r is None else f"{r:.2f}" for r in ranks)])
    for kind in KINDS:
        rows.append([f"mean of {shown}: {kind}", *(_mean_of(kind, shown, found) for found in about.values())])
    unseen = " that the model was not trained on" if first["held_out"] else ""
    note = (
        f"Spearman's rank correlation with the true reward over {first['windows']} windows of "
        f"{first['frames_a_window']} frames drawn evenly from all sources, of {first['episodes']} episodes{unseen}. "
        f"{LEGEND if 'z' in first['spearman'] else ''}"
        "“similarity” is the plain cosine of the backbone's embeddings of frames and prompt, without a world model. "
        "By source and behaviour: reward.json."
    )
    numbers = [{"task": t, **found} for t, found in about.items()]
    return Table("Does the learned reward rank the true one?", note, ["", *about], rows, numbers)


def _mean_of(kind: str, shown: str, found: Mapping[str, Any]) -> str:
    """The mean reward of windows of that kind of source; nothing where there are none."""
    mine = [s for name, s in found["by_source"].items() if _kind(name) == kind]
    return f"{np.average([s['mean'][shown] for s in mine], weights=[s['windows'] for s in mine]):.3f}" if mine else ""


def counterfactuals(scene: Scene) -> Chapter | None:
    """The reward imagined under other actions than the data's beside what really follows; with --reward alone."""
    if not scene.judge_reward:
        return None
    about = counterfactual.judge_tasks(scene)
    promised = promises.judge_policies(scene)
    save_json(scene.folder, "counterfactual", about)
    text = (
        f"From states of each task's replay the simulator and the model, which has seen {counterfactual.CONTEXT} "
        f"frames, go on under the data's actions, the same with noise of {counterfactual.NOISE}, those of another "
        f"window, and uniform ones. Where the imagined reward ({scene.policy_space}) is the real one, the gap is 0 "
        "and the slope 1. How to read it: docs/imagination.md."
    )
    missing = [task for task in tasks.task_names(scene.run.domain) if task not in about]
    if missing:
        text += f" Without a replay in the data, and so not judged: {', '.join(missing)}."
    found = counterfactual.counterfactual_tables(about)
    if promised:
        found["promises"] = promises.promises_table(promised)
    made = save_tables(scene.folder, found)
    curves = {task: {counterfactual.KINDS[k]: c for k, c in found["curves"].items()} for task, found in about.items()}
    caption = "Reward under other actions: real solid, imagined dashed."
    chart = _chart(scene, "counterfactual.png", caption, figures.counterfactual_rewards, curves)
    return Chapter("Can imagination be trusted?", text, made, charts=[chart])


# ---------------------------------------------------------------------------- training, data


def training(scene: Scene) -> Chapter:
    """Curves of every metric that any stage logged."""
    found = logs.grouped(scene.run.root)
    if not found:
        raise BadInput(f"no training log yet; make one with: {scene.run.command('pretrain')}")
    charts = [
        _chart(scene, f"curves-{folder}.png", f"Metrics of {folder}/ by step.", figures.curves, named)
        for folder, named in found.items()
    ]
    return Chapter("Training", charts=charts)


def experts(scene: Scene) -> Chapter | None:
    """How the experts learned whose replays are in the data; None where there is none."""
    found = find_experts(scene.run.root)
    made = save_tables(scene.folder, {"experts": experts_table(found)})
    if not made:
        return None
    about = f"Score of every training episode, exploration noise included, and its mean over {figures.SMOOTH}."
    chart = _chart(scene, "experts.png", about, figures.learning_curves, expert_curves(found))
    return Chapter("Experts", tables=made, charts=[chart])


def datasets(scene: Scene) -> Chapter:
    """A contact sheet of every dataset, and how much each covers."""
    run = scene.run
    opened = {a.path.name: Dataset.open([a.path], run.domain) for a in artifacts.find(run.root, "data/*", "collect")}
    if not opened:
        raise BadInput(f"no data yet; make it with: {run.command('collect')}")
    chapter = Chapter("Data", "First, best, median and worst episode of each dataset, with its return.")
    for name, dataset in opened.items():
        if dataset.has("image"):
            about = f"{name}: {dataset.n_episodes} episodes, {dataset.n_frames} frames."
            sheet = figures.contact_sheet(dataset)
            chapter.pictures.append(save_frames(scene.folder, f"data-{name}.png", about, sheet))
    chapter.tables = save_tables(scene.folder, {"coverage": coverage_table(opened)})
    return chapter


# ---------------------------------------------------------------------------- shared


def _chart(scene: Scene, name: str, caption: str, draw: Callable[[Path, Any], list[Path]], shown: Any) -> Chart:
    return Chart(tuple(path.name for path in draw(scene.folder / name, shown)), caption)


def _evaluate_command(scene: Scene) -> str:
    return scene.run.command("evaluate", "--task", tasks.task_names(scene.run.domain)[0])


PARTS = (policy, scores, transfers, imagination, dreams, rewards, counterfactuals, training, experts, datasets)
