"""Which parameters of the backbone a loss on its embeddings reaches, for every `mllm.train` mode."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stages.backbones import Backbone, load_backbone
from stages.backbones.internvideo2 import InternVideo2Backbone
from stages.backbones.tuning import Mode, load_tuned, make_trainable, tuned_tensors, window_embeddings
from stages.runtime.errors import BadInput
from tests.backbones.test_internvideo2 import make_model
from tests.backbones.tiny import FAMILIES, TinyTimm, save_tiny
from tests.backbones.trained import make_offline

KINDS = ("offline", "internvideo2", *FAMILIES)
Make = Callable[[str], Backbone]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setattr("transformers.models.pe_video.modeling_pe_video.AutoModelForImageClassification", TinyTimm)

    def build(kind: str) -> Backbone:
        if kind == "offline":
            return make_offline(tmp_path / kind)
        if kind == "internvideo2":
            return InternVideo2Backbone(make_model(), None, "tiny", "cpu")
        save_tiny(kind, tmp_path / kind)
        return load_backbone(str(tmp_path / kind), tmp_path, "cpu")

    return build


def frames_for(backbone: Backbone) -> Tensor:
    size = backbone.frame_size
    return torch.randint(0, 256, (4, 8, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def reached(backbone: Backbone) -> set[str]:
    """Names of the owner's parameters on which a loss on video embeddings leaves a non-zero gradient."""
    backbone.owner.zero_grad()
    e = backbone.encode_video(frames_for(backbone))
    if not e.requires_grad:
        return set()
    target = torch.randn(e.shape, generator=torch.Generator().manual_seed(1))
    (e - target).square().sum().backward()
    return {n for n, p in backbone.owner.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def names_in(backbone: Backbone, modules: list[nn.Module]) -> set[str]:
    wanted = {id(p) for m in modules for p in m.parameters()}
    return {n for n, p in backbone.owner.named_parameters() if id(p) in wanted}


@pytest.mark.parametrize("mode", ["none", "adapter"])
@pytest.mark.parametrize("kind", KINDS)
def test_frozen_modes_reach_nothing(kind: str, mode: Mode, make: Make) -> None:
    backbone = make(kind)
    assert make_trainable(backbone, mode) == []
    assert reached(backbone) == set()


@pytest.mark.parametrize("kind", KINDS)
def test_last_k_reaches_the_last_layers_and_the_head_alone(kind: str, make: Make) -> None:
    backbone = make(kind)
    freed = make_trainable(backbone, "last-k", k=1)
    found = reached(backbone)
    assert found <= names_in(backbone, backbone.layers()[-1:])
    assert_all_reached(backbone, freed, found)


@pytest.mark.parametrize("kind", KINDS)
def test_full_reaches_the_whole_video_side_and_no_text(kind: str, make: Make) -> None:
    backbone = make(kind)
    freed = make_trainable(backbone, "full")
    assert len(freed) == len(list(backbone.video.parameters()))
    found = reached(backbone)
    assert_all_reached(backbone, freed, found)
    assert not any("text" in name for name in found)


def assert_all_reached(backbone: Backbone, freed: list[nn.Parameter], found: set[str]) -> None:
    named = {id(p): n for n, p in backbone.owner.named_parameters()}
    missed = {named[id(p)] for p in freed} - found
    # the softmax does not see a shift of its logits, so a bias of the keys has no gradient but rounding
    assert not {n for n in missed if not n.endswith(("k_proj.bias", "key.bias", "k_bias", "in_proj_bias"))}, missed


@pytest.mark.parametrize("kind", KINDS)
def test_lora_reaches_its_own_matrices_alone(kind: str, make: Make) -> None:
    pytest.importorskip("peft")
    backbone = make(kind)
    before = backbone.encode_video(frames_for(backbone))
    freed = make_trainable(backbone, "lora", rank=2)
    assert len(freed) >= 2
    assert torch.allclose(backbone.encode_video(frames_for(backbone)), before, atol=1e-5)  # an update of zero
    for parameter in freed:
        parameter.data += 0.05 * torch.randn_like(parameter)  # its second matrix starts at 0 and hides the first
    found = reached(backbone)
    assert found == {n for n, p in backbone.owner.named_parameters() if any(p is f for f in freed)}
    assert all("lora_" in name for name in found)
    assert not torch.allclose(backbone.encode_video(frames_for(backbone)), before, atol=1e-4)


@pytest.mark.parametrize("mode", ["last-k", "lora", "full"])
def test_what_was_trained_can_be_saved_and_put_back(mode: Mode, make: Make) -> None:
    one, other = make("clip"), make("clip")
    for backbone in (one, other):
        make_trainable(backbone, mode, k=1, rank=2)
    for parameter in tuned_tensors(one).values():
        parameter += 0.1
    frames = frames_for(one)
    assert not torch.allclose(one.encode_video(frames), other.encode_video(frames), atol=1e-4)
    load_tuned(other, {k: v.clone() for k, v in tuned_tensors(one).items()})
    assert torch.equal(one.encode_video(frames), other.encode_video(frames))


@pytest.mark.parametrize("kind", ["offline", "clip"])  # of frames the size of its own, and of another
def test_windows_of_a_sequence_are_those_that_embed_stores(kind: str, make: Make) -> None:
    """From an episode's start, where the first frame is repeated, and from its middle."""
    backbone = make(kind)
    frames = torch.randint(0, 256, (20, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    stored = backbone.encode_episode(frames.numpy(), 64)  # (20, dim)
    past = torch.stack([frames[:1].expand(7, -1, -1, -1), frames[2:9]])  # (2, 7, 3, 64, 64)
    found = window_embeddings(backbone, past, torch.stack([frames[:10], frames[9:19]]))
    torch.testing.assert_close(found, torch.stack([stored[:10], stored[9:19]]), rtol=0, atol=1e-5)


def test_tensors_of_another_mode_are_refused(make: Make) -> None:
    one, other = make("clip"), make("clip")
    make_trainable(one, "full")
    make_trainable(other, "last-k", k=1)
    with pytest.raises(BadInput, match="does not fit"):
        load_tuned(other, tuned_tensors(one))


@pytest.mark.parametrize(
    "wrong", [{"mode": "last-k", "k": 0}, {"mode": "last-k", "k": 99}, {"mode": "lora", "rank": 0}]
)
def test_sizes_out_of_range_are_refused(wrong: dict[str, Any], make: Make) -> None:
    with pytest.raises(BadInput):
        make_trainable(make("clip"), **wrong)
