"""Speed of the two training loops on synthetic batches of a preset's sizes: ms an update, frames/s, parts, FLOP/s."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bitagent_cli.bench.data import peak_bytes, write_episodes
from bitagent_cli.bench.kernels import count_kernels
from stages import behave, pretrain
from stages.core.actor_critic import ActorCritic
from stages.core.behavior import Behavior
from stages.core.bitagent import BiTAgent
from stages.core.joint_model import JointModel
from stages.core.objective import choose_prompts, joint_behavior_loss
from stages.core.settings import ModelConfig
from stages.core.world_model import Labels, Noise, State, TaskContext, WorldModel
from stages.data.episodes import Dataset
from stages.data.sampler import Sampler, data_device, prefetch
from stages.runtime.compiling import should_capture, should_compile
from stages.runtime.distributed import World, keep_freed_memory
from stages.runtime.update import Update, autocast, fast_bf16, make_optimizer, make_update

DIM_EMBEDDING = {"internvideo2": 512}  # of the backbones that are not trained here
EPISODES = 4  # of random pixels, behind the time an update waits for data
DIM_ACTION = 6


def run(
    pretrain_config: pretrain.Config,
    behave_config: behave.Config,
    model_config: ModelConfig,
    device: str,
    dim_embedding: int,
    updates: int = 20,
) -> dict[str, Any]:
    """Measure the loops, with embeddings of the given width.

    Returns:
        {"pretrain": {...}, "world_model": {...}, "dynamics": {...}, "behave": {...}, "parts_ms": {...},
        "parts_share_of_matmul_ceiling": {...}, "behave_parts_ms": {...}, "matmul_tflops": ...}; times are medians in
        ms. `world_model` is the pretraining update with L_WM alone (the first row of Table 2), `dynamics` the one of
        the dynamics alone. A part's share is what it reaches of the rate of a large matrix product.
    """
    place = World(0, 1, torch.device(device))
    if device == "cpu":
        keep_freed_memory()
    torch.manual_seed(0)
    model = BiTAgent(model_config, dim_embedding, DIM_ACTION).to(place.device)
    ceiling = matmul_tflops(place.device)
    result: dict[str, Any] = {"device": device_name(place.device), "torch": torch.__version__, "matmul_tflops": ceiling}
    result["pretrain"] = bench_pretrain(pretrain_config, model, place, updates, ceiling)
    result["world_model"] = bench_pretrain(world_model_alone(pretrain_config), model, place, updates, ceiling)
    result["dynamics"] = bench_dynamics(pretrain_config, model, place, updates, ceiling)
    result["parts_ms"], result["parts_share_of_matmul_ceiling"] = bench_parts(
        pretrain_config, model, place, max(3, updates // 4), ceiling
    )
    result["parts_ms"]["data_wait"] = bench_data_wait(pretrain_config, model, place, updates)
    result["behave"], result["behave_parts_ms"] = bench_behave(behave_config, model, place, updates, ceiling)
    return result


def world_model_alone(config: pretrain.Config) -> pretrain.Config:
    """The same training with every loss but L_WM and the predictor of e switched off."""
    off = dict.fromkeys(("mllm", "text_imagination", "joint_behavior"), 0.0)
    return config.model_copy(update={"objective": config.objective.model_copy(update=off)})


def bench_pretrain(
    config: pretrain.Config, model: JointModel, place: World, updates: int, ceiling: float
) -> dict[str, Any]:
    """The joint update on one resident batch."""
    reset_peak(place.device)
    batch, objective, update = joint_update(config, model, place)
    flops = count_flops(lambda: objective(batch)[0])
    model.zero_grad(set_to_none=True)
    eager = joint_update(config.model_copy(update={"compile": "off"}), model, place)[2]
    kernels = count_kernels(lambda: eager(batch))
    seconds = time_calls(lambda: update(batch), place.device, updates)
    return {
        **figures(seconds, flops, ceiling, place.device),
        "kernels": kernels,
        "frames_per_second": round(config.batch * config.length / seconds),
        "compiled": should_compile(config.compile, place.device),
        "batch": [config.batch, config.length],
    }


def joint_update(
    config: pretrain.Config, model: WorldModel, place: World
) -> tuple[dict[str, Tensor], nn.Module, Update]:
    """A resident batch, the objective, and its update."""
    optimizer = make_optimizer(list(model.parameters()), config.lr, config.weight_decay)
    objective = pretrain.JointObjective(model, synthetic_labels(model, place.device), config.objective, place)
    update = pretrain.build_update(objective, optimizer, config, place)
    return synthetic_batch(config, model, place.device), objective, update


def bench_dynamics(
    config: pretrain.Config, model: JointModel, place: World, updates: int, ceiling: float
) -> dict[str, Any]:
    """The update of the dynamics alone on one resident batch."""
    reset_peak(place.device)
    c, shape = config.dynamics, (config.dynamics.batch, config.dynamics.length)
    labels = synthetic_labels(model, place.device)
    batch = synthetic_batch(config.model_copy(update={"batch": c.batch, "length": c.length}), model, place.device)
    codes = (*shape, model.config.classes)
    del batch["image"]  # no image is read
    batch["modes"] = torch.randint(model.config.categories, codes, device=place.device)
    optimizer = make_optimizer(list(model.dynamics()), c.lr, config.weight_decay)
    objective = pretrain.DynamicsObjective(model, labels, config, place)
    flops = count_flops(lambda: objective(batch)[0])
    model.zero_grad(set_to_none=True)
    update = pretrain.dynamics_update(model, labels, optimizer, config, place)
    seconds = time_calls(lambda: update(batch), place.device, updates)
    model.requires_grad_(True)
    frames = round(c.batch * c.length / seconds)
    return {**figures(seconds, flops, ceiling, place.device), "frames_per_second": frames, "batch": [*shape]}


def bench_data_wait(config: pretrain.Config, model: JointModel, place: World, updates: int) -> float:
    """Milliseconds an update waits for its batch, made ahead from episodes on disk as in `pretrain`."""
    rest, _, update = joint_update(config, model, place)
    waits = []
    with tempfile.TemporaryDirectory(prefix="bitagent-bench-") as folder:
        write_episodes(Path(folder) / "data", Path(folder) / "npz", EPISODES)
        dataset = Dataset.open([Path(folder) / "data"], "walker")
        keys, device = ("image", "action", "is_first"), data_device(dataset, place.device)
        sampler = Sampler(dataset, config.batch, config.length, seed=0, keys=keys, device=device)
        batches = prefetch(sampler, 0, updates + 3, device=str(place.device))
        for _ in range(updates + 3):
            synchronize(place.device)
            began = time.perf_counter()
            batch = next(batches)
            waits.append(time.perf_counter() - began)
            update({**rest, **batch})
        batches.close()
    return round(statistics.median(waits[3:]) * 1e3, 2)


def bench_behave(
    config: behave.Config, model: JointModel, place: World, updates: int, ceiling: float
) -> tuple[dict[str, Any], dict[str, float]]:
    """The behaviour update on one batch of latents, and its parts: forward and backward of each alone, eager."""
    reset_peak(place.device)
    model.requires_grad_(False)
    n, starts, h = config.decisions, config.imagined, config.horizon
    batch, loss, update = behave_update(config, model, place)
    learner, prompts = loss.learner, loss.prompts
    flops = count_flops(lambda: loss(batch)[0])
    learner.zero_grad(set_to_none=True)
    eager = behave_update(config.model_copy(update={"compile": "off"}), model, place)[2]
    kernels = count_kernels(lambda: eager(batch))
    seconds = time_calls(lambda: update(batch), place.device, updates)
    imagines = config.actor_critic.imagination > 0
    task = prompts.rows(batch["prompt"])
    start = State.read(batch).map(lambda x: x[:starts])
    parts = {"data": lambda: loss.data_loss(batch, task)[0]}
    if imagines:
        parts["imagination"] = lambda: loss.imagined_loss(start, prompts.rows(batch["prompt"][:starts]), alone=False)[0]
    split = {name: time_part(part, learner, place.device, config.bf16, updates) for name, part in parts.items()}
    model.requires_grad_(True)
    return {
        **figures(seconds, flops, ceiling, place.device),
        "kernels": kernels,
        "decisions_per_second": round(n / seconds),
        "imagined_steps_per_second": round(starts * h / seconds) if imagines else 0,
        "decisions": n,
        "starts": starts,
        "horizon": h,
    }, split


def behave_update(config: behave.Config, model: WorldModel, place: World) -> tuple[dict[str, Tensor], Behavior, Update]:
    """A batch of latents, the loss of a policy that learns from it under one prompt, and its update."""
    model.requires_grad_(False)
    with torch.no_grad():
        prompts = model.task(synthetic_labels(model, place.device).text)
    learner = ActorCritic(model.dim_policy, model.dim_action, config.actor_critic).to(place.device)
    halves = (learner.actor, learner.values)
    actor, critic = (make_optimizer(list(half.parameters()), config.lr, 0.0) for half in halves)
    loss = Behavior(model, learner, prompts, config, Noise(place.device), None)
    compiled = should_compile(config.compile, place.device)
    captured = should_capture(config.compile, place.device, place.size)
    clipped = [(actor, config.clip), (critic, config.clip)]
    update = make_update(
        loss, clipped, place.device, bf16=config.bf16, compiled=compiled, captured=captured, after=learner.update_slow
    )
    return synthetic_transitions(config.decisions, model, place.device), loss, update


def bench_parts(
    config: pretrain.Config, model: JointModel, place: World, updates: int, ceiling: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Forward and backward of each part alone, eager: where the time of an update goes, and how near it comes to what
    the device can do."""
    batch, c = synthetic_batch(config, model, place.device), model.config
    b, t, dev = config.batch, config.length, place.device
    noise = Noise(dev)
    s = F.one_hot(torch.randint(c.categories, (b, t, c.classes), device=dev), c.categories).flatten(-2).float()
    z = torch.randn(b, t, c.dim_z, device=dev)
    e = batch["embedding"].float()

    def task() -> TaskContext:
        prompts = choose_prompts(e, batch["task"], synthetic_labels(model, dev), config.objective, noise)
        return model.task(prompts.embedding)

    def rollouts() -> Tensor:
        seen = model.observe(batch["image"], batch["action"], batch["is_first"], e, task(), noise)
        seen.state = seen.state.map(Tensor.detach)
        ones = torch.ones(b, device=dev)
        terms = joint_behavior_loss(model, seen, task(), ones, config.objective, noise)
        return terms["joint_behavior"] + terms["rollout"]

    parts: dict[str, Callable[[], Tensor]] = {
        "encoder": lambda: model.rssm.posterior(batch["image"]).mean(),
        "recurrence": lambda: model.rssm.scan(z, batch["action"], batch["is_first"], model.rssm.first(b)).mean(),
        "fusion": lambda: model.fusion(e, s, task().gates.unsqueeze(1)).mean(),
        "decoder": lambda: model.decoder.squared_error(z.flatten(0, 1), batch["image"].flatten(0, 1)),
        "text_imagination": lambda: model.text_forced(s, batch["action"], batch["is_first"], task())[0].mean(),
        "joint_behavior_rollouts": rollouts,
    }

    found = {name: time_part(part, model, dev, config.bf16, updates) for name, part in parts.items()}
    shares = {name: round(count_flops(part) / found[name] / 1e9 / ceiling, 5) for name, part in parts.items()}
    optimizer = make_optimizer(list(model.parameters()), config.lr, config.weight_decay)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    found["optimizer"] = round(time_calls(optimizer.step, dev, updates) * 1e3, 2)
    model.zero_grad(set_to_none=True)
    return found, shares


def time_part(part: Callable[[], Tensor], module: nn.Module, device: torch.device, bf16: bool, updates: int) -> float:
    """Milliseconds of a part's forward and backward pass; leaves no gradient in `module`."""

    def call() -> None:
        with autocast(device, bf16):
            value = part()
        value.backward()

    seconds = time_calls(call, device, updates)
    module.zero_grad(set_to_none=True)
    return round(seconds * 1e3, 2)


def synthetic_batch(config: pretrain.Config, model: WorldModel, device: torch.device) -> dict[str, Tensor]:
    b, t = config.batch, config.length
    return {
        "image": torch.randint(0, 256, (b, t, 3, 64, 64), dtype=torch.uint8, device=device),
        "action": torch.rand(b, t, model.dim_action, device=device) * 2 - 1,
        "is_first": torch.zeros(b, t, dtype=torch.bool, device=device),
        "embedding": F.normalize(torch.randn(b, t, model.dim_embedding, device=device), dim=-1).half(),
        "task": torch.zeros(b, dtype=torch.long, device=device),
    }


def synthetic_transitions(count: int, model: WorldModel, device: torch.device) -> dict[str, Tensor]:
    """What `draw_batch` returns, for one prompt."""
    c = model.config

    def state(prefix: str) -> dict[str, Tensor]:
        return {
            f"{prefix}h": torch.rand(count, c.deter, device=device) * 2 - 1,
            f"{prefix}z": torch.randn(count, c.dim_z, device=device),
            f"{prefix}e": F.normalize(torch.randn(count, model.dim_embedding, device=device), dim=-1),
        }

    return {
        **state(""),
        **state("next_"),
        "prompt": torch.zeros(count, dtype=torch.long, device=device),
        "action": torch.rand(count, model.dim_action, device=device) * 2 - 1,
        "reward": torch.randn(count, device=device),
        "discount": torch.full((count,), 0.9, device=device),
        "normal": torch.randn(count, model.dim_action, device=device),
        "imitated": torch.ones(count, device=device),
        "mean": torch.zeros(count, device=device),
        "spread": torch.ones(count, device=device),
    }


def synthetic_labels(model: WorldModel, device: torch.device) -> Labels:
    text = F.normalize(torch.randn(1, model.dim_embedding, device=device), dim=-1)
    return Labels(text, torch.ones(1, dtype=torch.bool, device=device), torch.zeros(1, device=device))


def figures(seconds: float, flops: int, ceiling: float, device: torch.device) -> dict[str, Any]:
    tflops = flops / seconds / 1e12
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_bytes()
    return {
        "ms": round(seconds * 1e3, 2),
        "tflops": round(tflops, 3),
        "share_of_matmul_ceiling": round(tflops / ceiling, 3),
        "peak_gib": round(peak / 2**30, 2),
    }


def count_flops(forward: Callable[[], Tensor]) -> int:
    """Floating-point operations of a forward and backward pass (matrix products and convolutions)."""
    with FlopCounterMode(display=False) as counter:
        forward().backward()
    return int(counter.get_total_flops())


def reset_peak(device: torch.device) -> None:
    """Count a loop's peak memory from here, where the device can; the peak of a CPU is the process's."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def time_calls(call: Callable[[], object], device: torch.device, count: int, warmup: int = 5) -> float:
    """Median seconds of one call, after a warm-up that lets compilation and capture happen."""
    for _ in range(warmup):
        call()
    seconds = []
    for _ in range(count):
        synchronize(device)
        began = time.perf_counter()
        call()
        synchronize(device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_tflops(device: torch.device, size: int | None = None) -> float:
    """Matrix product rate of this device, in TFLOP/s and the precision of the loops: the ceiling they are held to."""
    size = size or (8192 if device.type == "cuda" else 1024)
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if fast_bf16(device) else torch.float32)
    seconds = time_calls(lambda: a @ a, device, 10)
    return round(2 * size**3 / seconds / 1e12, 3)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
