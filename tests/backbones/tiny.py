"""Tiny random models of each transformers family, saved with tokenizer and processor numbers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

FAMILIES = ("clip", "siglip", "siglip2", "xclip", "videoprism", "pe_video")
SIZE = 32
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
WORDS = ("<pad>", "<unk>", "<bos>", "<eos>", "walk", "fast", "clean", "stand", "a")
TEXT = {
    "vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 16, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIZE,
    "patch_size": 8,
}  # fmt: skip


def make_config(family: str) -> Any:
    import transformers as t

    if family == "clip":
        return t.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12)
    if family == "siglip":
        return t.SiglipConfig(text_config=TEXT, vision_config=VISION)
    if family == "siglip2":
        return t.Siglip2Config(text_config=TEXT, vision_config={**VISION, "num_patches": (SIZE // 8) ** 2})
    if family == "xclip":
        own = {"mit_hidden_size": 12, "mit_intermediate_size": 16, "mit_num_attention_heads": 2, "num_frames": 8}
        return t.XCLIPConfig(
            text_config=TEXT, vision_config={**VISION, **own, "drop_path_rate": 0.0}, projection_dim=12
        )
    if family == "videoprism":
        vision = {k: v for k, v in VISION.items() if k not in ("patch_size", "num_hidden_layers")}
        vision |= {"num_frames": 16, "tubelet_size": [1, 8, 8], "num_spatial_layers": 2, "num_temporal_layers": 1,
                   "num_auxiliary_layers": 1}  # fmt: skip
        return t.VideoPrismConfig(text_config=TEXT, vision_config=vision)
    video = {"vision_config": {"architecture": "tiny", "num_classes": 10}, "hidden_size": 16, "intermediate_size": 24,
             "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8}  # fmt: skip
    text = t.ModernBertConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3,
    )  # fmt: skip
    config = t.PeVideoConfig()
    config.text_config, config.video_config = text, t.PeVideoEncoderConfig(**video)
    return config


class TinyTimm(nn.Module):
    """Stands in for timm's vision tower inside PE-Video: timm needs torchvision, which these tests do without."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.map = nn.Linear(3 * SIZE * SIZE, labels)

    @classmethod
    def from_config(cls, config: Any) -> TinyTimm:
        return cls(config.num_labels)

    def forward(self, pixels: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.map(pixels.flatten(1)))


def save_tiny(family: str, folder: Path, seed: int = 0) -> None:
    """Write config, random weights, tokenizer and preprocessor numbers of one family."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import AutoModel, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    model = AutoModel.from_config(make_config(family))
    with torch.no_grad():
        for parameter in model.parameters():  # away from zeros and ones
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<bos>", eos_token="<eos>",
        model_max_length=16,
    ).save_pretrained(folder)  # fmt: skip
    looks = {"image_mean": MEAN, "image_std": STD, "do_normalize": family != "videoprism", "resample": 2}
    if family in ("clip", "xclip"):
        looks |= {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}, "do_center_crop": True}
    elif family == "siglip2":
        looks |= {"max_num_patches": (SIZE // 8) ** 2, "patch_size": 8}
    else:
        looks |= {"size": {"height": SIZE, "width": SIZE}}
    video = family in ("videoprism", "pe_video")
    (folder / f"{'video_' if video else ''}preprocessor_config.json").write_text(json.dumps(looks))
