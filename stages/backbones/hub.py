"""Video-language and image-language dual encoders of transformers, by hub id or local folder.

Supported by config.model_type: xclip, videoprism, pe_video (video) and siglip, siglip2, clip (images:
the mean over the window's frames). Frames are resized and normalised here in PyTorch from the numbers
in the processor's JSON, because transformers' own processors need torchvision.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.backbones.base import Backbone, held, linears_of, resize
from stages.runtime import storage
from stages.runtime.errors import BadInput
from stages.worlds.motion import window_rows

RESAMPLE = {2: "bilinear", 3: "bicubic"}  # PIL's numbers
PROCESSOR_FILES = ("video_preprocessor_config.json", "preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Looks:
    """How a processor prepares a frame: resize to `size`, cut the middle `crop`, (x · scale - mean) / std."""

    size: int
    crop: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: str

    def pixels(self, frames: Tensor) -> Tensor:
        """uint8 (N, 8, 3, size, size) → float (N, 8, 3, crop, crop)."""
        edge = (self.size - self.crop) // 2
        x = frames[..., edge : edge + self.crop, edge : edge + self.crop].float() * self.scale
        mean, std = (torch.tensor(v, device=x.device).view(3, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std


@dataclass(frozen=True)
class Family:
    """How to run one kind of model.

    video: (model, pixels (N, 8, 3, S, S)) → (N, dim), or for image models (N, 3, S, S) → (N, dim).
    text: (model, tokens) → (M, dim). blocks, tail: the video side's transformer blocks, and what follows them.
    """

    video: Callable[[Any, Tensor], Tensor]
    text: Callable[[Any, dict[str, Tensor]], Tensor]
    blocks: Callable[[Any], list[nn.Module]]
    tail: Callable[[Any], list[nn.Module]]
    stem: Callable[[Any], list[nn.Module]]
    image: bool = False
    pad_to_longest: bool = True
    masked_text: bool = True


def _text_features(model: Any, tokens: dict[str, Tensor]) -> Tensor:
    features: Tensor = model.get_text_features(**tokens).pooler_output
    return features


def _image_features(model: Any, pixels: Tensor) -> Tensor:
    features: Tensor = model.get_image_features(pixel_values=pixels).pooler_output
    return features


def _siglip2_features(model: Any, pixels: Tensor) -> Tensor:
    """SigLIP 2 with native aspect ratio wants patches (N, P, p·p·3), a mask and the grid's shape."""
    size = model.config.vision_config.patch_size
    patches = pixels.unfold(2, size, size).unfold(3, size, size)  # (N, 3, h, w, p, p)
    height, width = patches.shape[2:4]
    patches = patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)  # (N, h·w, p·p·3)
    features: Tensor = model.get_image_features(
        pixel_values=patches,
        pixel_attention_mask=torch.ones(patches.shape[:2], dtype=torch.int32, device=patches.device),
        spatial_shapes=torch.tensor([[height, width]] * len(patches), device=patches.device),
    ).pooler_output
    return features


def _xclip_video(model: Any, pixels: Tensor) -> Tensor:
    """X-CLIP's attention across frames fixes their number: pick evenly from the window."""
    chosen = torch.linspace(0, pixels.shape[1] - 1, model.config.vision_config.num_frames).round().long()
    features: Tensor = model.get_video_features(pixel_values=pixels[:, chosen.to(pixels.device)]).pooler_output
    return features


def _videoprism_video(model: Any, pixels: Tensor) -> Tensor:
    """Positions in time are interpolated when the model was trained on another number of frames."""
    other = pixels.shape[1] != model.config.vision_config.num_frames
    features: Tensor = model.get_video_features(
        pixel_values_videos=pixels, interpolate_pos_encoding=other
    ).pooler_output  # (N, 1, dim)
    return features.flatten(1)


def _pe_video(model: Any, pixels: Tensor) -> Tensor:
    features: Tensor = model.video_head(model.video_encoder(pixel_values_videos=pixels).pooler_output)
    return features


def _pe_text(model: Any, tokens: dict[str, Tensor]) -> Tensor:
    hidden = model.text_model(**tokens, output_hidden_states=True).hidden_states[-1]  # (M, L, W)
    features: Tensor = model.text_video_head(hidden[:, 0])
    return features


def _vision_blocks(model: Any) -> list[nn.Module]:
    return list(model.vision_model.encoder.layers)


def _vision_tail(model: Any) -> list[nn.Module]:
    parts = [getattr(model.vision_model, name, None) for name in ("post_layernorm", "head")]
    parts += [getattr(model, name, None) for name in ("visual_projection", "mit")]
    return [p for p in parts if p is not None]


def _vision_stem(model: Any) -> list[nn.Module]:
    parts = [getattr(model.vision_model, n, None) for n in ("embeddings", "pre_layrnorm", "pre_layernorm")]
    return [p for p in parts if p is not None]


_VISION = (_vision_blocks, _vision_tail, _vision_stem)
FAMILIES: dict[str, Family] = {
    "clip": Family(_image_features, _text_features, *_VISION, image=True),
    "siglip": Family(
        _image_features, _text_features, *_VISION, image=True, pad_to_longest=False, masked_text=False
    ),
    "siglip2": Family(
        _siglip2_features, _text_features, *_VISION, image=True, pad_to_longest=False, masked_text=False
    ),
    "xclip": Family(_xclip_video, _text_features, *_VISION),
    "videoprism": Family(
        _videoprism_video,
        _text_features,
        blocks=lambda m: [
            *m.video_model.vision_model.spatial_layers,
            *m.video_model.vision_model.temporal_layers,
            *m.video_model.auxiliary_layers,
        ],
        tail=lambda m: [m.video_model.head, m.video_model.head_layernorm],
        stem=lambda m: [
            getattr(m.video_model.vision_model, name)
            for name in ("spatial_embeddings", "temporal_embeddings", "layernorm1", "layernorm2")
        ],
        pad_to_longest=False,
    ),
    "pe_video": Family(
        _pe_video,
        _pe_text,
        blocks=lambda m: list(m.video_encoder.layers),
        tail=lambda m: [m.video_encoder.norm, m.video_encoder.output, m.video_head],
        stem=lambda m: [m.video_encoder.embedder, m.video_encoder.patch_embedder],
    ),
}  # fmt: skip


class HubBackbone(Backbone):
    """A dual encoder of transformers behind the interface."""

    def __init__(self, name: str, model: Any, tokenizer: Any, looks: Looks, device: str) -> None:
        self.family = FAMILIES[model.config.model_type]
        self.model = self.owner = model.eval().requires_grad_(False).to(device)
        self.tokenizer, self.looks, self.device = tokenizer, looks, device
        self.frame_size, self.resample = looks.size, looks.resample
        self.video = nn.ModuleList([*self.family.stem(model), *self.family.blocks(model), *self.family.tail(model)])
        self.id = f"{model.config.model_type}-{Path(name).name}-{weights_hash(model)}"
        self.max_tokens = min(int(tokenizer.model_max_length), int(model.config.text_config.max_position_embeddings))
        self.dim = int(self._text(["a"]).shape[1])

    def layers(self) -> list[nn.Module]:
        *first, last = self.family.blocks(self.model)
        return [*first, nn.ModuleList([last, *self.family.tail(self.model)])]

    def linears(self) -> list[nn.Linear]:
        return linears_of(self.family.blocks(self.model))

    def _video(self, frames: Tensor) -> Tensor:
        if not self.family.image:
            with self._autocast():
                return self.family.video(self.model, self.looks.pixels(frames))
        features = self._frames(frames.flatten(0, 1)).unflatten(0, (-1, self.window))  # (N, 8, dim)
        return features.mean(1)

    def _frames(self, frames: Tensor) -> Tensor:
        """uint8 (N, 3, S, S) → unit vectors (N, dim) of an image model."""
        with self._autocast():
            return F.normalize(self.family.video(self.model, self.looks.pixels(frames)).float(), dim=-1)

    @torch.no_grad()
    def encode_episode(self, frames: np.ndarray, batch: int, stride: int = 1) -> Tensor:
        if not self.family.image:
            return super().encode_episode(frames, batch, stride)
        found = []  # each frame once; a window is a mean
        for start in range(0, len(frames), batch):
            part = torch.from_numpy(frames[start : start + batch].copy()).to(self.device)
            found.append(self._frames(resize(part, self.frame_size, self.resample)))
        rows = torch.from_numpy(window_rows(np.array([0, len(frames)]))).to(self.device)
        return held(F.normalize(torch.cat(found)[rows].mean(1), dim=-1)[::stride], stride, len(frames))

    def _text(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(
            texts,
            padding=True if self.family.pad_to_longest else "max_length",
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        ).to(self.device)
        names = ("input_ids", "attention_mask") if self.family.masked_text else ("input_ids",)
        with self._autocast():
            return self.family.text(self.model, {name: tokens[name] for name in names})

    def _autocast(self) -> torch.autocast:
        kind = torch.device(self.device).type
        return torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda")


def weights_hash(model: nn.Module) -> str:
    """12 hex digits over every weight's name and bytes."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:12]


# ---------------------------------------------------------------------------- loading


def load_hub(name: str, device: str) -> HubBackbone:
    """Load a dual encoder by hub id or local folder; no remote code is run.

    Raises:
        BadInput: not found, gated, no network, damaged, or not one of the supported kinds.
    """
    from transformers import AutoConfig, AutoModel, AutoTokenizer
    from transformers.utils import logging

    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise BadInput(f"the backbone folder {name} does not exist; give a folder with config.json, or a hub id")
    name = str(Path(name).expanduser()) if name.startswith("~") else name
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(name)
        if config.model_type not in FAMILIES:
            raise BadInput(
                f"{name} is a {config.model_type} model, which does not embed video and text in one space; "
                f"use one of these kinds: {', '.join(sorted(FAMILIES))}, or offline, or internvideo2"
            )
        looks = read_looks(name, config)
        tokenizer = AutoTokenizer.from_pretrained(name)
        model, report = AutoModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
        if report["missing_keys"]:
            raise BadInput(
                f"the weights of {name} are incomplete: {', '.join(sorted(report['missing_keys'])[:3])} and "
                f"{len(report['missing_keys'])} in all are missing; download them again"
            )
        return HubBackbone(name, model, tokenizer, looks, device)
    except BadInput:
        raise
    except Exception as error:  # transformers and its backends raise many kinds; explain() tells them apart
        raise explain(name, error) from None


def explain(name: str, error: Exception) -> BadInput:
    """One sentence for what went wrong while loading from the hub or a folder; re-raises what is no user's mistake."""
    from huggingface_hub import errors
    from safetensors import SafetensorError

    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    words = " ".join(str(e) for e in chain)
    if any(isinstance(e, errors.GatedRepoError) for e in chain) or "gated repo" in words:
        return BadInput(
            f"the weights of {name} are gated: accept their licence at https://huggingface.co/{name}, "
            "then run `hf auth login`"
        )
    if any(isinstance(e, errors.RepositoryNotFoundError) for e in chain) or "is not a valid model identifier" in words:
        return BadInput(f"there is no model {name} on the Hugging Face hub, or it is private; check the spelling")
    unreachable = (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, ConnectionError)
    if any(isinstance(e, unreachable) for e in chain) or "couldn't connect" in words:
        return BadInput(
            f"{name} is not in the local cache and the hub cannot be reached; connect once, or give a local folder"
        )
    if any(isinstance(e, ImportError) for e in chain):
        return BadInput(f"{name} needs a package that is not installed: {_first_line(error)}")
    for link in chain:
        if isinstance(link, OSError) and link.filename and link.errno in storage.ENVIRONMENT:
            return storage.corrupted(Path(str(link.filename)), link)
    if any(isinstance(e, SafetensorError | OSError | ValueError | KeyError | RuntimeError) for e in chain):
        return BadInput(f"{name} cannot be loaded ({_first_line(error)}); download it again")
    raise error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def read_looks(name: str, config: Any) -> Looks:
    """Frame size and normalisation from the processor's JSON. Raises BadInput when there is none or it is unusual."""
    from transformers.utils import cached_file

    for file in PROCESSOR_FILES:
        found = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
        if found is None:
            continue
        whole = json.loads(Path(found).read_text())
        part = whole.get("video_processor") or whole.get("image_processor") or whole
        if "image_mean" in part or "size" in part or "max_num_patches" in part:
            return _looks(name, part, config)
    raise BadInput(f"{name} has no processor configuration (preprocessor_config.json); download it again, whole")


def _looks(name: str, part: dict[str, Any], config: Any) -> Looks:
    size = _edge(part.get("size"))
    if config.model_type == "siglip2":  # as many whole patches as a square image may have
        patch = config.vision_config.patch_size
        size = patch * int(part.get("max_num_patches", config.vision_config.num_patches) ** 0.5)
    if not size:
        raise BadInput(
            f"the processor of {name} resizes to {part.get('size')!r}, which is not one size; use another model"
        )
    crop = _edge(part.get("crop_size")) if part.get("do_center_crop") else size
    normal = part.get("do_normalize", True)
    return Looks(
        size=size,
        crop=min(crop or size, size),
        scale=float(part.get("rescale_factor", 1 / 255)) if part.get("do_rescale", True) else 1.0,
        mean=tuple(part.get("image_mean") or (0.0,) * 3) if normal else (0.0,) * 3,
        std=tuple(part.get("image_std") or (1.0,) * 3) if normal else (1.0,) * 3,
        resample=RESAMPLE.get(int(part.get("resample", 3)), "bicubic"),
    )


def _edge(size: Any) -> int:
    """{'shortest_edge': 224}, {'height': 224, 'width': 224} or 224 → 224; anything else → 0."""
    if isinstance(size, dict):
        height, width = size.get("height"), size.get("width")
        return int(size.get("shortest_edge") or (height if height == width else 0) or 0)
    return size if isinstance(size, int) else 0
