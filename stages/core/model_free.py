"""The model-free rows: IQL, TD3+BC and TD3 from pixels on the offline dataset, without a world model.

The networks and updates are those of the TD3 experts (stages/methods/td3.py), on features of a convolutional
encoder that the critics train (Yarats et al. 2021, DrQ-v2). The reward of a frame is the cosine of the backbone's
embedding of its window and of the prompt; with `--oracle-reward` it is the true one. Both are standardised over the
dataset: episodes end by time alone, so a constant changes no policy, and values need not climb to it first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.backbones import backbone_id
from stages.data.episodes import Dataset
from stages.data.inputs import find_inputs
from stages.data.sampler import Sampler, Windows, data_device, prefetch
from stages.methods.pixels import PixelEncoder, random_shift, transitions
from stages.methods.td3 import IQL, TD3, TD3BC, IQLConstants, TD3Config
from stages.policies.goals import Goal, command_again, embed_goal
from stages.runtime import artifacts, checkpoints, storage
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run, Section, Share
from stages.runtime.distributed import World, require_one_process, world
from stages.runtime.errors import BadInput
from stages.runtime.loop import Metrics, progress, require_finite, seed_everything, stop_signals
from stages.runtime.names import MODEL_FREE, base_method
from stages.runtime.update import autocast, load_optimizer_tensors, optimizer_tensors

REWARD_ROWS = 65536  # behind mean and spread of the reward


class OfflineRLConfig(Section):
    """Section `offline_rl` of the preset; defaults and comments in presets/paper.yaml."""

    updates: int
    depth: int
    features: int
    stack: int
    shift: int
    n_step: int
    start_fraction: Share
    alpha: float
    expectile: Share
    temperature: float
    bf16: bool
    log_every: int
    checkpoint_every: int
    td3: TD3Config


MakeAgent = Callable[[OfflineRLConfig, int, int, int, torch.device], TD3]
AGENTS: dict[str, MakeAgent] = {
    "td3": lambda c, *sizes: TD3(c.td3, *sizes, delayed_targets=True),
    "td3-bc": lambda c, *sizes: TD3BC(c.td3, *sizes, alpha=c.alpha),
    "iql": lambda c, *sizes: IQL(c.td3, *sizes, constants=IQLConstants(c.expectile, c.temperature, c.updates)),
}
assert set(AGENTS) == set(MODEL_FREE)


@dataclass(frozen=True)
class PixelJob:
    """One policy to learn from pixels.

    Args:
        label: the method, with -oracle where the reward is the true one; names the artifact's folder.
        embedding: (1, dim_e) of the prompt, unit norm.
        data, embeddings: what it is learned from, one of each for every dataset.
        backbone: that made the embeddings.
    """

    config: OfflineRLConfig
    run: Run
    goal: Goal
    label: str
    oracle: bool
    embedding: Tensor
    data: list[Artifact]
    embeddings: list[Artifact]
    backbone: str

    @property
    def path(self) -> Path:
        return self.run.root / "policy" / f"{self.label}-s{self.run.seed}" / self.goal.name

    @property
    def inputs(self) -> list[Artifact]:
        return [*self.data, *self.embeddings]

    @property
    def record(self) -> dict[str, Any]:
        goal = {"prompts": [*self.goal.prompts], "tasks": [*self.goal.tasks]}
        return {"offline_rl": self.config.model_dump(), "method": self.label, "backbone": self.backbone, **goal}


def learn(
    config: OfflineRLConfig | None, run: Run, goal: Goal, label: str, backbone: str | None, oracle: bool
) -> Artifact:
    """Find what a policy is learned from, and learn it. Raises BadInput for several prompts and for missing inputs."""
    if config is None or backbone is None:
        raise BadInput(f"method {label} needs the preset's section `offline_rl` and the name of a backbone")
    if len(goal.prompts) > 1:
        raise BadInput(f"method {label} learns one prompt a policy: give --task, --prompt or --video")
    data, embeddings = find_inputs(run, backbone)
    again = run.command("embed", "--backbone", backbone, "--fresh")
    embedding = embed_goal(goal, embeddings[0], run, backbone, again)
    return make_policy(PixelJob(config, run, goal, label, oracle, embedding, data, embeddings, backbone))


def make_policy(job: PixelJob) -> Artifact:
    """The policy artifact of a job: the finished one, or learned (from its checkpoint) and saved.

    Raises BadInput when another configuration is there, Interrupted on a signal.
    """
    run, path = job.run, job.path
    found = artifacts.reuse(path, "behave", job.record, run.seed, job.inputs, run.fresh, run.renew)
    if found:
        if not run.quiet:
            print(f"reusing {path}")
        return found
    require_one_process(f"behave --method {job.label}")
    with world(run.device) as place, storage.locked(path):
        began = time.time()
        learner, summary = train(job, place)
        made = artifacts.save(
            path,
            "behave",
            {
                "encoder": learner.encoder.state_dict(),
                "actor": learner.agent.actor.state_dict(),
                "prompt": {"embedding": job.embedding},
            },
            domain=run.domain,
            config=job.record,
            seed=run.seed,
            inputs=job.inputs,
            resolved=run.resolved,
            began=began,
            extra={
                "dim_embedding": job.embedding.shape[-1],
                "dim_action": job.data[0].meta["extra"]["action_dim"],
                "backbone": job.backbone,
                "backbone_id": backbone_id(job.embeddings[0], job.backbone, run),
                "summary": summary,
            },
        )
        checkpoints.drop(path)
        return made


class Learner:
    """Encoder and agent; `update` is one step on a batch of windows.

    Everything random in an update is drawn from a generator seeded by (seed, step): a checkpoint needs no random state.
    """

    def __init__(
        self, config: OfflineRLConfig, method: str, action_dim: int, seed: int, device: torch.device, reward: Reward
    ) -> None:
        self.config, self.device, self.reward, self.seed = config, device, reward, seed
        self.encoder = PixelEncoder(config.depth, config.stack, config.features).to(device)
        self.agent = AGENTS[method](config, config.features, action_dim, seed, device)
        self.optimizer = torch.optim.Adam(self.encoder.parameters(), config.td3.lr, fused=True)
        self.generator = torch.Generator()

    def update(self, batch: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
        """One update of agent and encoder; the encoder learns from the critics alone."""
        self.generator.manual_seed(self.seed * 1_000_003 + step)
        config = self.config
        drawn = transitions(batch, self.reward(batch), config.stack, config.n_step, config.td3.discount)
        obs = self.encode(drawn["obs"])  # (B, D)
        with torch.no_grad():
            next_obs = self.encode(drawn["next_obs"])
        self.optimizer.zero_grad()
        terms = self.agent.update({**drawn, "obs": obs, "next_obs": next_obs}, step, self.generator)
        self.optimizer.step()
        return terms | {"data_reward": drawn["reward"].mean()}

    def encode(self, image: Tensor) -> Tensor:
        """Features (B, D) of randomly shifted stacks (B, 3k, H, W)."""
        size = 2 * self.config.shift + 1
        shift = torch.randint(size, (len(image), 2), generator=self.generator) - self.config.shift
        with autocast(self.device, self.config.bf16):
            return self.encoder(random_shift(image, shift.to(image.device)))

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything a checkpoint needs to continue bit for bit."""
        encoder = {"encoder": dict(self.encoder.state_dict()), "encoder_optimizer": optimizer_tensors(self.optimizer)}
        return self.agent.tensors() | encoder

    def load(self, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Inverse of `tensors`."""
        self.agent.load(groups)
        self.encoder.load_state_dict(dict(groups["encoder"]))
        load_optimizer_tensors(self.optimizer, groups["encoder_optimizer"])


def train(job: PixelJob, place: World) -> tuple[Learner, dict[str, float]]:
    """The loop: resumes from a checkpoint, saves one regularly and when a signal asks to stop."""
    config, run, path = job.config, job.run, job.path
    dataset = Dataset.open([a.path for a in job.data], run.domain, [a.path for a in job.embeddings])
    seed_everything(run.seed)
    reward = make_reward(dataset, job, place.device)
    learner = Learner(config, base_method(job.label), dataset.action_dim, run.seed, place.device, reward)
    about = {**job.record, "seed": run.seed, "inputs": artifacts.input_ids(job.inputs)}
    if run.fresh:
        checkpoints.drop(path)
    start = restore(path, about, learner)
    lower = f"offline_rl.td3.lr={config.td3.lr / 3:.2g}"
    sampler = Sampler(
        dataset,
        config.td3.batch,
        config.stack + config.n_step,
        run.seed,
        Windows(config.start_fraction, part_weights(dataset, job) if job.oracle else None),
        keys=("image", "action", "is_first", "is_terminal", "reward" if job.oracle else "embedding"),
        device=data_device(dataset, place.device),
    )
    metrics = Metrics(path.parent / f"{path.name}.log", start + 1)
    values: dict[str, float] = {}
    bar = progress(config.updates, start, f"{job.label} {job.goal.name}", "update", run.quiet)
    with stop_signals() as stop, bar:
        for step, batch in enumerate(prefetch(sampler, start, config.updates, device=str(place.device)), start + 1):
            terms = learner.update(batch, step)
            last = step == config.updates
            saving = not last and (bool(stop) or step % config.checkpoint_every == 0)
            if saving or last or step % config.log_every == 0:
                values = {k: float(v) for k, v in terms.items()}
                require_finite(step, values, checkpoints.folder(path), lower)
            if last or step % config.log_every == 0:
                metrics.log(step, values)
                bar.set_postfix(value=f"{values['value']:.2f}", critic=f"{values['critic_loss']:.3f}", refresh=False)
            bar.update()
            if saving:
                checkpoints.save(path, step, learner.tensors(), about)
                if stop:
                    raise stop.leave(command_again(run, job.goal, job.label))
    metrics.close()
    return learner, values


def restore(path: Path, about: Mapping[str, Any], learner: Learner) -> int:
    """Load the checkpoint of this very run, if any; returns the update to go on from."""
    found = checkpoints.load(path, about)
    if found is None:
        return 0
    step, groups = found
    learner.load(groups)
    return step


# ---------------------------------------------------------------------------- reward

Reward = Callable[[Mapping[str, Tensor]], Tensor]  # a batch of the sampler → (B, T), for arriving at each frame


def make_reward(dataset: Dataset, job: PixelJob, device: torch.device) -> Reward:
    """Similarity to the prompt, or the true reward; standardised by its mean and spread over the data that is used."""
    prompt = job.embedding[0].to(device)

    def similarity(batch: Mapping[str, Tensor]) -> Tensor:
        return F.normalize(batch["embedding"].float(), dim=-1) @ prompt.to(batch["embedding"].device)

    def true(batch: Mapping[str, Tensor]) -> Tensor:
        return batch["reward"].float()

    raw, key = (true, "reward") if job.oracle else (similarity, "embedding")
    used = np.flatnonzero(part_weights(dataset, job)) if job.oracle else np.arange(len(dataset.parts))
    share = REWARD_ROWS // len(used)
    parts = [dataset.parts[int(i)] for i in used]
    rows = [np.linspace(p.first_row, p.last_row - 1, min(share, p.frames)).astype(np.int64) for p in parts]
    values = raw({key: torch.from_numpy(dataset.rows(key, np.concatenate(rows)))})
    mean, spread = values.mean().to(device), values.std().clamp(min=1e-6).to(device)
    return lambda batch: (raw(batch) - mean) / spread


def part_weights(dataset: Dataset, job: PixelJob) -> list[float]:
    """The true reward is recorded for a task's own data alone: the frames of those parts, 0 for the others.

    Raises BadInput when there is none.
    """
    weights = [float(p.frames) if p.task == job.goal.tasks[0] else 0.0 for p in dataset.parts]
    if not any(weights):
        task = job.goal.tasks[0]
        raise BadInput(
            f"--oracle-reward needs data of task {task}; make it with: bitagent collect --source expert --task {task}"
        )
    return weights
