"""Each family of transformers dual encoders: tiny random models, saved, loaded by path, compared with a direct call."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.backbones import load_backbone
from stages.backbones.hub import HubBackbone, explain
from stages.runtime.errors import BadInput
from tests.backbones.tiny import FAMILIES, MEAN, SIZE, STD, TinyTimm, save_tiny

TEXTS = ["walk fast clean", "stand"]


def clips(count: int = 3) -> Tensor:
    return torch.randint(
        0, 256, (count, 8, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def direct(family: str, folder: Path, frames: Tensor) -> tuple[Tensor, Tensor]:
    """The same by a plain call of transformers: unit vectors of the clips and of the texts."""
    from transformers import AutoModel, AutoTokenizer

    model: Any = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    pixels = frames / 255.0 if family == "videoprism" else (frames / 255.0 - mean) / std
    whole = family in ("siglip", "siglip2", "videoprism")
    tokens = tokenizer(
        TEXTS, padding="max_length" if whole else True, max_length=16, truncation=True, return_tensors="pt"
    )
    tokens = {k: v for k, v in tokens.items() if k in ("input_ids", "attention_mask")}
    with torch.no_grad():
        if family in ("clip", "siglip"):
            every = model.get_image_features(pixel_values=pixels.flatten(0, 1)).pooler_output
            video = F.normalize(every, dim=-1).unflatten(0, (-1, 8)).mean(1)
        elif family == "siglip2":
            every = []
            for image in pixels.flatten(0, 1):
                patches = [
                    image[:, y : y + 8, x : x + 8].permute(1, 2, 0).reshape(-1)
                    for y in range(0, SIZE, 8)
                    for x in range(0, SIZE, 8)
                ]
                every.append(
                    model.get_image_features(
                        pixel_values=torch.stack(patches)[None],
                        pixel_attention_mask=torch.ones(1, len(patches)),
                        spatial_shapes=torch.tensor([[SIZE // 8, SIZE // 8]]),
                    ).pooler_output
                )
            video = F.normalize(torch.cat(every), dim=-1).unflatten(0, (-1, 8)).mean(1)
        elif family == "xclip":
            video = model.get_video_features(pixel_values=pixels).pooler_output
        elif family == "videoprism":
            video = model.get_video_features(pixel_values_videos=pixels, interpolate_pos_encoding=True).pooler_output[
                :, 0
            ]
        else:
            out = model(pixel_values_videos=pixels, **tokens)
            return F.normalize(out.video_embeds, dim=-1), F.normalize(out.text_video_embeds, dim=-1)
        if whole and family != "videoprism":
            tokens.pop("attention_mask")
        text = model.get_text_features(**tokens).pooler_output
    return F.normalize(video, dim=-1), F.normalize(text, dim=-1)


@pytest.fixture(autouse=True)
def _no_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.models.pe_video.modeling_pe_video.AutoModelForImageClassification", TinyTimm)


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_a_direct_call(family: str, tmp_path: Path) -> None:
    save_tiny(family, tmp_path)
    backbone = load_backbone(str(tmp_path), tmp_path, "cpu")
    assert isinstance(backbone, HubBackbone)
    video, text = backbone.encode_video(clips()), backbone.encode_text(TEXTS)
    assert video.shape == (3, backbone.dim) and text.shape == (2, backbone.dim)
    assert torch.allclose(video.norm(dim=-1), torch.ones(3), atol=1e-5)
    wanted_video, wanted_text = direct(family, tmp_path, clips())
    assert torch.allclose(video, wanted_video, atol=1e-5)
    assert torch.allclose(text, wanted_text, atol=1e-5)
    assert (video[0] - video[1]).abs().max() > 1e-4


@pytest.mark.parametrize("family", ["clip", "xclip"])
def test_an_episode_equals_its_windows(family: str, tmp_path: Path) -> None:
    save_tiny(family, tmp_path)
    backbone = load_backbone(str(tmp_path), tmp_path, "cpu")
    frames = np.random.default_rng(0).integers(0, 256, (11, 3, SIZE, SIZE), dtype=np.uint8)
    rows = np.maximum(np.arange(11)[:, None] + np.arange(-7, 1), 0)
    wanted = backbone.encode_video(torch.from_numpy(frames[rows]))
    assert torch.allclose(backbone.encode_episode(frames, batch=4), wanted, atol=1e-5)
    strided = backbone.encode_episode(frames, batch=4, stride=4)
    assert torch.allclose(strided, wanted[np.arange(11) // 4 * 4], atol=1e-5)


def test_frames_of_another_size_are_resized(tmp_path: Path) -> None:
    save_tiny("clip", tmp_path)
    backbone = load_backbone(str(tmp_path), tmp_path, "cpu")
    flat = torch.full((1, 8, 3, 50, 50), 77, dtype=torch.uint8)
    assert torch.allclose(backbone.encode_video(flat), backbone.encode_video(flat[..., :SIZE, :SIZE]), atol=1e-5)


def test_id_is_stable_and_follows_the_weights(tmp_path: Path) -> None:
    save_tiny("clip", tmp_path / "a")
    save_tiny("clip", tmp_path / "b", seed=1)
    first, again, other = (load_backbone(str(tmp_path / n), tmp_path, "cpu").id for n in "aab")
    assert first == again
    assert first.rpartition("-")[2] != other.rpartition("-")[2]


def test_wrong_kind_is_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="is a bert model"):
        load_backbone(str(tmp_path), tmp_path, "cpu")


def test_missing_folder_and_empty_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not exist"):
        load_backbone(str(tmp_path / "nothing"), tmp_path, "cpu")
    with pytest.raises(BadInput, match="empty"):
        load_backbone(" ", tmp_path, "cpu")


def test_damaged_and_incomplete_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_tiny("clip", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = next(k for k in tensors if k.endswith("visual_projection.weight"))
    save_file({k: v for k, v in tensors.items() if k != name}, file, metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"incomplete: visual_projection\.weight"):
        load_backbone(str(tmp_path), tmp_path, "cpu")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(BadInput, match="cannot be loaded"):
        load_backbone(str(tmp_path), tmp_path, "cpu")


@pytest.mark.parametrize(
    ("size", "words"), [(None, "no processor configuration"), ({"height": 3, "width": 4}, "not one size")]
)
def test_unusual_processor_is_refused(size: Any, words: str, tmp_path: Path) -> None:
    save_tiny("clip", tmp_path)
    file = tmp_path / "preprocessor_config.json"
    if size is None:
        file.unlink()
    else:
        file.write_text(json.dumps(json.loads(file.read_text()) | {"size": size, "do_center_crop": False}))
    with pytest.raises(BadInput, match=words):
        load_backbone(str(tmp_path), tmp_path, "cpu")


def test_what_the_hub_says_becomes_one_sentence() -> None:
    from huggingface_hub import errors

    def from_hub(kind: type[Exception]) -> OSError:
        error = OSError("We couldn't load it\nsecond line")
        error.__cause__ = kind.__new__(kind)
        return error

    for kind, words in (
        (errors.GatedRepoError, "gated"),
        (errors.RepositoryNotFoundError, "there is no model"),
        (errors.LocalEntryNotFoundError, "cannot be reached"),
        (errors.OfflineModeIsEnabled, "cannot be reached"),
        (ImportError, "needs a package"),
    ):
        message = str(explain("some/model", from_hub(kind)))
        assert words in message and "some/model" in message and "\n" not in message
    with pytest.raises(ZeroDivisionError):
        explain("some/model", ZeroDivisionError())


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ENODEV])
def test_a_cache_that_cannot_be_read_is_not_to_be_downloaded_again(code: int) -> None:
    error = OSError(code, os.strerror(code), "/cache/model.safetensors")
    try:
        raise RuntimeError("loading failed") from error
    except RuntimeError as raised:
        message = str(explain("some/model", raised))
    assert message.startswith("/cache/model.safetensors cannot be read: ")
    assert "download" not in message
