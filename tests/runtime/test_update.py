"""One update: eager, compiled, captured, resumed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from stages.core import objective
from stages.core.joint_model import JointModel
from stages.core.world_model import Noise
from stages.runtime import compiling
from stages.runtime import update as updates
from tests.core.helpers import make_batch, make_labels, make_model, objective_config

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
Loss = Callable[[updates.Batch], tuple[Tensor, updates.Terms]]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
needs_compiler = pytest.mark.skipif(compiling.compiler_lack() is not None, reason="needs a C++ compiler")


def joint(model: JointModel, device: torch.device = CPU) -> Loss:
    """The joint loss of a batch, every term switched on."""
    labels, config = make_labels(), objective_config(horizon=3)
    labels = objective.Labels(labels.text.to(device), labels.known.to(device), labels.threshold.to(device))
    noise = Noise(device)
    return lambda batch: objective.joint_loss(model, batch, labels, config, noise)


def batches(count: int, device: torch.device = CPU, **size: int) -> list[dict[str, Tensor]]:
    made = [make_batch(seed=i, starts=((0, 0), (1, 1)), **size) for i in range(count)]
    return [{k: v.to(device) for k, v in batch.items()} for batch in made]


def state(model: torch.nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}


def test_what_leaves_a_gpu_no_room_for_updates_stays_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 2000))
    assert updates.roomy(499, CUDA) == CUDA and updates.roomy(500, CUDA) == CPU
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (79 * 2**30, 80 * 2**30))
    frames = 3_660_000 * 64 * 64 * 3  # of the walker at scale paper
    assert updates.roomy(frames, CUDA) == CUDA and updates.roomy(68 * 2**30, CUDA) == CPU
    assert updates.roomy(10**18, CPU) == CPU


# ---------------------------------------------------------------------------- the update itself


def test_update_is_clip_then_adamw_for_each_optimizer() -> None:
    """Against torch's own unfused, single-tensor AdamW."""
    torch.manual_seed(0)
    x = torch.randn(20, 4)

    def run(literal: bool) -> tuple[list[Tensor], list[dict[str, float]]]:
        torch.manual_seed(1)
        one, two = torch.nn.Linear(4, 3), torch.nn.Linear(3, 1)
        logged = []

        def loss(batch: updates.Batch) -> tuple[Tensor, updates.Terms]:
            error = two(torch.tanh(one(batch["x"]))).square().mean()
            return error, {"error": error.detach()}

        if literal:
            optimizers = [
                torch.optim.AdamW(m.parameters(), lr, weight_decay=0.01, eps=1e-8, foreach=False)
                for m, lr in ((one, 0.01), (two, 0.02))
            ]
            for _ in range(5):
                error, _ = loss({"x": x})
                for optimizer in optimizers:
                    optimizer.zero_grad()
                error.backward()
                norms = []
                for module, clip in ((one, 0.05), (two, 1e9)):
                    norm = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]).norm()
                    norms.append(norm.item())
                    for p in module.parameters():
                        assert p.grad is not None
                        p.grad *= min(1.0, clip / (norm + 1e-6).item())
                for optimizer in optimizers:
                    optimizer.step()
                logged.append(
                    {"error": error.item(), "loss": error.item(), "grad_norm": norms[0], "grad_norm1": norms[1]}
                )
        else:
            pairs: list[tuple[torch.optim.Optimizer, float]] = [
                (updates.make_optimizer(list(one.parameters()), 0.01, 0.01), 0.05),
                (updates.make_optimizer(list(two.parameters()), 0.02, 0.01), 1e9),
            ]
            update = updates.make_update(loss, pairs, CPU, bf16=False, compiled=False)
            logged = [{k: v.item() for k, v in update({"x": x}).items()} for _ in range(5)]
        return [*one.parameters(), *two.parameters()], logged

    (found, logged), (wanted, terms) = run(literal=False), run(literal=True)
    for weight, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(weight, other)
    for a, b in zip(logged, terms, strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_bf16_is_autocast_where_it_is_fast_and_after_runs_once_per_update(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = torch.nn.Linear(4, 3)
    seen, calls = [], []

    def loss(batch: updates.Batch) -> tuple[Tensor, updates.Terms]:
        out = layer(batch["x"])
        seen.append(out.dtype)
        return out.float().square().mean(), {}

    for bf16, fast in ((False, True), (True, False), (True, True)):
        monkeypatch.setattr(updates, "fast_bf16", lambda _, fast=fast: fast)
        optimizer = updates.make_optimizer(list(layer.parameters()), 0.01, 0.0)
        update = updates.make_update(
            loss, [(optimizer, 1.0)], CPU, bf16=bf16, compiled=False, after=lambda: calls.append(1)
        )
        update({"x": torch.ones(2, 4)})
    assert seen == [torch.float32, torch.float32, torch.bfloat16] and len(calls) == 3
    assert all(p.dtype == torch.float32 for p in layer.parameters())


def test_joint_update_in_bf16_stays_near_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates, "fast_bf16", lambda _: True)

    def terms(bf16: bool) -> dict[str, float]:
        model = make_model()
        optimizer = updates.make_optimizer(list(model.parameters()), 1e-4, 0.01)
        update = updates.make_update(joint(model), [(optimizer, 100.0)], CPU, bf16=bf16, compiled=False)
        torch.manual_seed(0)
        return {k: v.item() for k, v in update(batches(1)[0]).items()}

    half, whole = terms(bf16=True), terms(bf16=False)
    for name in ("image", "kl_nats", "alignment", "semantic_reconstruction", "text_imagination"):
        assert half[name] == pytest.approx(whole[name], rel=0.05), name


def test_training_lowers_the_joint_loss() -> None:
    model = make_model()
    optimizer = updates.make_optimizer(list(model.parameters()), 3e-3, 0.0)
    update = updates.make_update(joint(model), [(optimizer, 100.0)], CPU, bf16=False, compiled=False)
    torch.manual_seed(0)
    first, *_, last = [update(batches(1)[0])["loss"].item() for _ in range(40)]
    assert last < 0.8 * first


# ---------------------------------------------------------------------------- resuming


def fresh(seed: int = 0) -> tuple[JointModel, torch.optim.AdamW, updates.Update]:
    model = make_model(seed)
    optimizer = updates.make_optimizer(list(model.parameters()), 1e-3, 0.01)
    update = updates.make_update(joint(model), [(optimizer, 100.0)], CPU, bf16=False, compiled=False)
    return model, optimizer, update


def test_the_learning_rate_falls_along_a_line_over_the_last_share() -> None:
    found = [updates.annealed(step, 10, 0.4) for step in range(1, 11)]
    assert found == pytest.approx([1] * 7 + [0.75, 0.5, 0.25])
    assert [updates.annealed(step, 10, 0.0) for step in range(1, 11)] == [1] * 10
    assert [updates.annealed(step, 4, 1.0) for step in range(1, 5)] == pytest.approx([1, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_new_learning_rate_scales_the_step(as_tensor: bool) -> None:
    """AdamW's first step is lr times the gradient's sign; on CUDA the rate is a tensor that a graph holds on to."""
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = updates.make_optimizer([weight], 1e-3, 0.0)
    held = torch.tensor(1e-3)
    if as_tensor:
        optimizer.param_groups[0]["lr"] = held
    updates.set_lr(optimizer, 0.25)
    weight.grad = torch.tensor([3.0, -0.5])
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([0.75, -1.75]))
    assert not as_tensor or (optimizer.param_groups[0]["lr"] is held and held.item() == 0.25)


def test_optimizer_tensors_round_trip() -> None:
    model, optimizer, update = fresh()
    update(batches(1)[0])
    file = save(updates.optimizer_tensors(optimizer))
    _, other, _ = fresh(seed=1)
    updates.load_optimizer_tensors(other, load(file))
    found, wanted = other.state_dict(), optimizer.state_dict()
    assert found["param_groups"] == wanted["param_groups"]
    assert found["state"].keys() == wanted["state"].keys()
    assert len(found["state"]) == len(list(model.parameters()))
    for index, slots in wanted["state"].items():
        for key, value in slots.items():
            assert torch.equal(found["state"][index][key], value), (index, key)


def test_parameters_without_a_gradient_have_no_optimizer_state() -> None:
    model = make_model(fusion="sum")
    optimizer = updates.make_optimizer(list(model.parameters()), 1e-3, 0.01)
    before = model.fusion.allocator.w1.weight.clone()
    updates.make_update(joint(model), [(optimizer, 100.0)], CPU, bf16=False, compiled=False)(batches(1)[0])
    tensors = updates.optimizer_tensors(optimizer)
    _, other, _ = fresh()
    updates.load_optimizer_tensors(other, tensors)
    assert updates.optimizer_tensors(other).keys() == tensors.keys()
    assert torch.equal(model.fusion.allocator.w1.weight, before)


def test_resuming_is_bit_exact() -> None:
    data = batches(6)
    model, _, update = fresh()
    torch.manual_seed(7)
    for batch in data:
        update(batch)

    half, optimizer, update = fresh()
    torch.manual_seed(7)
    for batch in data[:3]:
        update(batch)
    kept = save(half.state_dict()), save(updates.optimizer_tensors(optimizer)), torch.get_rng_state()

    torch.manual_seed(999)  # another process, somewhere else in its random numbers
    resumed, optimizer, update = fresh(seed=5)
    resumed.load_state_dict(load(kept[0]))
    updates.load_optimizer_tensors(optimizer, load(kept[1]))
    torch.set_rng_state(kept[2])
    for batch in data[3:]:
        update(batch)
    for name, value in state(model).items():
        assert torch.equal(state(resumed)[name], value), name


@pytest.mark.parametrize(("capability", "fast"), [(True, True), (False, False)])
def test_bf16_is_asked_of_the_card(monkeypatch: pytest.MonkeyPatch, capability: bool, fast: bool) -> None:
    """Emulated products do not count: an older card is faster in float32."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: capability)
    assert updates.fast_bf16("cuda") is fast


# ---------------------------------------------------------------------------- compiling


@needs_compiler
@pytest.mark.timeout(900)  # compiling takes minutes on a busy machine
def test_compiled_equals_eager() -> None:
    """Three updates by the C++ the compiler writes, on the same noise: small graphs, however long the loops."""

    def train(compiled: bool) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
        model = make_model(fusion_layers=1)
        optimizer = updates.make_optimizer(list(model.parameters()), 1e-3, 0.01)
        update = updates.make_update(joint(model), [(optimizer, 100.0)], CPU, bf16=False, compiled=compiled)
        torch.manual_seed(3)
        terms = [{k: v.item() for k, v in update(batch).items()} for batch in batches(3, batch=2, length=3)]
        return state(model), terms

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._inductor.config.patch(fallback_random=True, compile_threads=1):
        weights, terms = train(compiled=True)
    assert 5 < torch._dynamo.utils.counters["stats"]["unique_graphs"] < 20
    wanted, eager = train(compiled=False)
    for a, b in zip(terms, eager, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4)
    for name, value in wanted.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-3, msg=name)


# ---------------------------------------------------------------------------- CUDA


def train_on_cuda(*, compiled: bool, captured: bool, bf16: bool) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    cuda = torch.device("cuda")
    model = make_model().to(cuda)
    optimizer = updates.make_optimizer(list(model.parameters()), 1e-3, 0.01)
    pair: list[tuple[torch.optim.Optimizer, float]] = [(optimizer, 100.0)]
    update = updates.make_update(joint(model, cuda), pair, cuda, bf16=bf16, compiled=compiled, captured=captured)
    torch.manual_seed(3)
    data = batches(updates.CapturedUpdate.WARMUP + 5, cuda)
    terms = []
    for step, batch in enumerate(data, 1):  # the graph must read the step size of every replay
        updates.set_lr(optimizer, 1e-3 * updates.annealed(step, len(data), 0.5))
        terms.append({k: v.item() for k, v in update(batch).items()})
    if captured:
        assert isinstance(update, updates.CapturedUpdate) and updates.graph is not None
    return state(model), terms


@needs_cuda
def test_captured_update_replays_the_eager_one() -> None:
    """Same random numbers, same arithmetic: the graph changes nothing but the launches."""
    weights, terms = train_on_cuda(compiled=False, captured=True, bf16=False)
    wanted, eager = train_on_cuda(compiled=False, captured=False, bf16=False)
    for a, b in zip(terms, eager, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4)
    for name, value in wanted.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-3, msg=name)


@needs_cuda
def test_compiled_and_captured_update_equals_eager_within_bf16() -> None:
    torch._dynamo.reset()
    with torch._inductor.config.patch(fallback_random=True):
        _, terms = train_on_cuda(compiled=True, captured=True, bf16=True)
    _, eager = train_on_cuda(compiled=False, captured=False, bf16=True)
    for a, b in zip(terms, eager, strict=True):
        for name in ("image", "kl_nats", "semantic_reconstruction", "alignment", "text_imagination", "joint_behavior"):
            assert a[name] == pytest.approx(b[name], rel=0.05, abs=0.02), name


@needs_cuda
def test_captured_update_draws_new_noise_at_every_replay() -> None:
    cuda = torch.device("cuda")
    model = make_model().to(cuda)
    optimizer = updates.make_optimizer(list(model.parameters()), 0.0, 0.0)
    pair: list[tuple[torch.optim.Optimizer, float]] = [(optimizer, 100.0)]
    update = updates.make_update(joint(model, cuda), pair, cuda, bf16=False, compiled=False, captured=True)
    batch = batches(1, cuda)[0]
    found = [update(batch)["joint_behavior"].item() for _ in range(updates.CapturedUpdate.WARMUP + 4)]
    assert len(set(found)) == len(found)
