"""InternVideo2 against an independent implementation written from the facts page, in plain tensor operations."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stages.backbones import internvideo2, load_backbone
from stages.backbones.bert import BertSizes
from stages.backbones.internvideo2 import (
    FILE,
    REPOSITORY,
    InternVideo2,
    InternVideo2Backbone,
    Sizes,
    find_tokenizer,
    interpolate_time,
    load_public_weights,
    missing_weights,
    read_checkpoint,
    word_pieces,
)
from stages.runtime.errors import BadInput

TEXT = BertSizes(width=24, layers=3, heads=4, hidden=40, vocabulary=30522, positions=64)
SIZES = Sizes(
    width=32, blocks=2, heads=4, mlp_ratio=48 / 11, patch=14, image=28, frames=8, pooled=20, embedding=12, text=TEXT
)


def make_model(seed: int = 0) -> InternVideo2:
    torch.manual_seed(seed)
    model = InternVideo2(SIZES)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor += 0.2 * torch.randn_like(tensor)
    return model.eval()


def as_checkpoint(model: InternVideo2, frames: int = 8) -> dict[str, Tensor]:
    """What the public file holds: also cross-modal layers and training-only parts."""
    found = {k: v.clone() for k, v in model.state_dict().items()}
    found["vision_encoder.pos_embed"] = torch.randn(1, 1 + frames * SIZES.patches, SIZES.width)
    found["vision_encoder.clip_decoder.0.head.weight"] = torch.zeros(2)
    found["vision_encoder.clip_pos_embed"] = torch.zeros(2)
    found["text_encoder.bert.encoder.layer.3.crossattention.self.query.weight"] = torch.zeros(2)
    found["temp"] = torch.zeros(())
    return found


# ---------------------------------------------------------------------------- the reference


def layer_norm(x: Tensor, w: dict[str, Tensor], name: str, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + eps) * w[name + ".weight"] + w[name + ".bias"]


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, keep: Tensor | None = None) -> Tensor:
    """One sample, one head at a time: (L, W) → (L, W)."""
    size, out = q.shape[-1] // heads, []
    for h in range(heads):
        cut = slice(h * size, (h + 1) * size)
        score = q[:, cut] @ k[:, cut].T / math.sqrt(size)
        if keep is not None:
            score = score.masked_fill(~keep, -1e30)
        out.append(torch.softmax(score, -1) @ v[:, cut])
    return torch.cat(out, -1)


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def reference_video(w: dict[str, Tensor], frames: Tensor) -> Tensor:
    """One clip uint8 (8, 3, 28, 28) → unit vector."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (frames / 255.0 - mean[:, None, None]) / std[:, None, None]
    kernel, tokens = w["vision_encoder.patch_embed.proj.weight"][:, :, 0], [w["vision_encoder.cls_token"][0, 0]]
    for t in range(8):
        for row in range(2):
            for column in range(2):
                patch = x[t, :, row * 14 : row * 14 + 14, column * 14 : column * 14 + 14]
                tokens.append((kernel * patch).sum((1, 2, 3)) + w["vision_encoder.patch_embed.proj.bias"])
    z = torch.stack(tokens) + w["vision_encoder.pos_embed"][0]
    for i in range(SIZES.blocks):
        b = f"vision_encoder.blocks.{i}."
        y = rms_norm(z, w[b + "norm1.weight"])
        q, k, v = (y @ w[b + "attn.qkv.weight"].T).split(SIZES.width, -1)
        q, k = rms_norm(q, w[b + "attn.q_norm.weight"]), rms_norm(k, w[b + "attn.k_norm.weight"])
        y = attend(q, k, v, SIZES.heads) @ w[b + "attn.proj.weight"].T + w[b + "attn.proj.bias"]
        z = z + y * w[b + "ls1.gamma"]
        y = rms_norm(z, w[b + "norm2.weight"])
        y = gelu(y @ w[b + "mlp.fc1.weight"].T + w[b + "mlp.fc1.bias"])
        z = z + (y @ w[b + "mlp.fc2.weight"].T + w[b + "mlp.fc2.bias"]) * w[b + "ls2.gamma"]
    p = "vision_encoder.clip_projector."
    q = layer_norm(z.mean(0, keepdim=True), w, p + "norm1_q", 1e-5)
    k, v = layer_norm(z, w, p + "norm1_k", 1e-5), layer_norm(z, w, p + "norm1_v", 1e-5)
    q, k, v = (
        t @ w[p + f"cross_attn.{n}.weight"].T + w[p + f"cross_attn.{n}_bias"]
        for n, t in zip("qkv", (q, k, v), strict=True)
    )
    pooled = attend(q, k, v, SIZES.heads) @ w[p + "cross_attn.proj.weight"].T + w[p + "cross_attn.proj.bias"]
    out = (pooled @ w["vision_proj.weight"].T + w["vision_proj.bias"])[0]
    return out / out.norm()


def reference_text(w: dict[str, Tensor], ids: Tensor, mask: Tensor, layers: int) -> Tensor:
    """One sentence (L,) → unit vector: the first token after `layers` layers."""
    e = "text_encoder.bert.embeddings."
    x = w[e + "word_embeddings.weight"][ids] + w[e + "position_embeddings.weight"][: len(ids)]
    x = layer_norm(x + w[e + "token_type_embeddings.weight"][0], w, e + "LayerNorm", 1e-12)
    for i in range(layers):
        b = f"text_encoder.bert.encoder.layer.{i}."
        q, k, v = (
            x @ w[b + f"attention.self.{n}.weight"].T + w[b + f"attention.self.{n}.bias"]
            for n in ("query", "key", "value")
        )
        y = attend(q, k, v, TEXT.heads, mask.bool()[None])
        y = y @ w[b + "attention.output.dense.weight"].T + w[b + "attention.output.dense.bias"]
        x = layer_norm(x + y, w, b + "attention.output.LayerNorm", 1e-12)
        y = gelu(x @ w[b + "intermediate.dense.weight"].T + w[b + "intermediate.dense.bias"])
        y = y @ w[b + "output.dense.weight"].T + w[b + "output.dense.bias"]
        x = layer_norm(x + y, w, b + "output.LayerNorm", 1e-12)
    out = x[0] @ w["text_proj.weight"].T + w["text_proj.bias"]
    return out / out.norm()


def load_through_file(tmp_path: Path, tensors: dict[str, Tensor], wrap: str = "") -> InternVideo2:
    file = tmp_path / "model.pt"
    torch.save({wrap: tensors} if wrap else tensors, file)
    with torch.device("meta"):
        model = InternVideo2(SIZES)
    load_public_weights(model, read_checkpoint(file), file)
    return model


# ---------------------------------------------------------------------------- tests


@pytest.mark.parametrize("frames", [8, 4])
def test_video_equals_the_reference(tmp_path: Path, frames: int) -> None:
    tensors = as_checkpoint(make_model(), frames)
    backbone = InternVideo2Backbone(load_through_file(tmp_path, tensors, "module"), find_tokenizer(), "x", "cpu")
    clips = torch.randint(0, 256, (3, 8, 3, 28, 28), dtype=torch.uint8)
    if frames == 4:  # linear in time, half-pixel centres: 8 positions from 4, ends held
        grid = tensors["vision_encoder.pos_embed"][0, 1:].view(4, SIZES.patches, -1)
        weights = [
            (0, 0, 0.0),
            (0, 1, 0.25),
            (0, 1, 0.75),
            (1, 2, 0.25),
            (1, 2, 0.75),
            (2, 3, 0.25),
            (2, 3, 0.75),
            (3, 3, 0.0),
        ]
        wide = torch.cat([grid[a] * (1 - f) + grid[b] * f for a, b, f in weights])
        tensors["vision_encoder.pos_embed"] = torch.cat([tensors["vision_encoder.pos_embed"][:, :1], wide[None]], 1)
    wanted = torch.stack([reference_video(tensors, c) for c in clips])
    assert torch.allclose(backbone.encode_video(clips), wanted, atol=1e-4, rtol=0)
    assert (wanted[0] - wanted[1]).abs().max() > 1e-2  # the comparison is not between constants


def test_text_equals_the_reference_and_stops_before_the_cross_modal_layers(tmp_path: Path) -> None:
    tensors = as_checkpoint(make_model())
    backbone = InternVideo2Backbone(load_through_file(tmp_path, tensors), find_tokenizer(), "x", "cpu")
    found = backbone.encode_text(["walk fast clean", "walk"])
    for row, words in zip(found, ([101, 3328, 3435, 4550], [101, 3328]), strict=True):
        wanted = reference_text(tensors, torch.tensor(words), torch.ones(len(words)), TEXT.layers)
        assert torch.allclose(row, wanted, atol=1e-4, rtol=0)


def test_prompts_have_no_final_separator_and_keep_39_word_pieces() -> None:
    long = " ".join(["walk", "fast"] * 30)
    ids, mask = word_pieces(find_tokenizer(), ["walk fast clean", long, ""])
    assert ids.shape == mask.shape == (3, 40)
    assert ids[0].tolist() == [101, 3328, 3435, 4550] + 36 * [0] and mask[0].tolist() == 4 * [1] + 36 * [0]
    assert ids[1].tolist() == [101, *([3328, 3435] * 30)[:39]] and mask[1].tolist() == 40 * [1]
    assert ids[2].tolist() == [101] + 39 * [0] and mask[2].sum() == 1


def test_sizes_and_keys_are_those_of_the_facts_page() -> None:
    with torch.device("meta"):
        state = InternVideo2(Sizes()).state_dict()
    block = [
        "norm1.weight", "norm2.weight", "attn.qkv.weight", "attn.q_norm.weight", "attn.k_norm.weight", "attn.proj.weight",
        "attn.proj.bias", "ls1.gamma", "ls2.gamma", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias",
    ]  # fmt: skip
    keys = {f"vision_encoder.blocks.{i}.{name}" for i in range(40) for name in block}
    keys |= {
        f"vision_encoder.{n}"
        for n in ("cls_token", "pos_embed", "img_pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")
    }
    keys |= {f"vision_encoder.clip_projector.norm1_{n}.{p}" for n in "qkv" for p in ("weight", "bias")}
    keys |= {f"vision_encoder.clip_projector.cross_attn.{n}" for q in "qkv" for n in (f"{q}.weight", f"{q}_bias")}
    keys |= {f"vision_encoder.clip_projector.cross_attn.proj.{p}" for p in ("weight", "bias")}
    keys |= {f"{n}_proj.{p}" for n in ("vision", "text") for p in ("weight", "bias")}
    linear = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
              "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm"]  # fmt: skip
    keys |= {
        f"text_encoder.bert.encoder.layer.{i}.{n}.{p}" for i in range(19) for n in linear for p in ("weight", "bias")
    }
    kinds = (
        "word_embeddings.weight",
        "position_embeddings.weight",
        "token_type_embeddings.weight",
        "LayerNorm.weight",
        "LayerNorm.bias",
    )
    keys |= {f"text_encoder.bert.embeddings.{n}" for n in kinds}
    assert set(state) == keys
    shapes = {k: tuple(v.shape) for k, v in state.items()}
    assert shapes["vision_encoder.pos_embed"] == (1, 1 + 8 * 256, 1408)
    assert shapes["vision_encoder.img_pos_embed"] == (1, 257, 1408)
    assert shapes["vision_encoder.blocks.39.mlp.fc1.weight"] == (6144, 1408)
    assert shapes["vision_encoder.patch_embed.proj.weight"] == (1408, 3, 1, 14, 14)
    assert shapes["vision_encoder.clip_projector.cross_attn.proj.weight"] == (768, 1408)
    assert (shapes["vision_proj.weight"], shapes["text_proj.weight"]) == ((512, 768), (512, 1024))
    assert shapes["text_encoder.bert.embeddings.word_embeddings.weight"] == (30522, 1024)


def test_class_position_is_kept_by_interpolation() -> None:
    positions = torch.randn(1, 1 + 4 * 4, 6)
    wide = interpolate_time(positions, 8, 4)
    assert wide.shape == (1, 33, 6)
    assert torch.equal(wide[:, 0], positions[:, 0])


def test_text_tower_without_bert_in_its_names_loads(tmp_path: Path) -> None:
    tensors = {k.replace("text_encoder.bert.", "text_encoder."): v for k, v in as_checkpoint(make_model()).items()}
    model = load_through_file(tmp_path, tensors, "model")
    wanted = tensors["text_encoder.embeddings.LayerNorm.bias"]
    assert torch.equal(model.state_dict()["text_encoder.bert.embeddings.LayerNorm.bias"], wanted)


def test_partial_checkpoint_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    tensors = as_checkpoint(make_model())
    del tensors["vision_encoder.blocks.1.ls2.gamma"], tensors["text_proj.bias"]
    with pytest.raises(BadInput, match=r"vision_encoder\.blocks\.1\.ls2\.gamma.*text_proj\.bias"):
        load_through_file(tmp_path, tensors)


def test_other_shape_is_refused_with_its_name(tmp_path: Path) -> None:
    tensors = as_checkpoint(make_model())
    tensors["vision_proj.weight"] = torch.zeros(3, 3)
    with pytest.raises(BadInput, match=r"vision_proj\.weight .*\(3, 3\)"):
        load_through_file(tmp_path, tensors)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("code ran",))


@pytest.mark.parametrize("content", ["text", "pickle", "list"])
def test_other_files_are_refused(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.pt"
    if content == "text":
        file.write_text("not a checkpoint")
    elif content == "pickle":
        file.write_bytes(pickle.dumps(Evil()))
    else:
        torch.save([torch.zeros(1)], file)
    with pytest.raises(BadInput):
        read_checkpoint(file)
    assert "code ran" not in capsys.readouterr().out


def test_missing_file_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITAGENT_INTERNVIDEO2", str(tmp_path / "nothing.pt"))
    with pytest.raises(BadInput, match="BITAGENT_INTERNVIDEO2"):
        load_backbone("internvideo2", tmp_path, "cpu")


def test_missing_weights_are_known_without_a_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("BITAGENT_INTERNVIDEO2", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    sentence = missing_weights()
    for words in ("BITAGENT_INTERNVIDEO2", "licence", "--set embed.backbone=offline --set pretrain.backbone=offline"):
        assert words in sentence
    cached = tmp_path / f"models--{REPOSITORY.replace('/', '--')}"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    (cached / "snapshots" / "abc").mkdir(parents=True)
    (cached / "snapshots" / "abc" / FILE).touch()
    assert missing_weights() == ""
    monkeypatch.setenv("BITAGENT_INTERNVIDEO2", str(tmp_path / "moved.pt"))
    assert "moved.pt" in missing_weights(), "what the variable names comes first, as when the weights are loaded"


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ENODEV])
def test_a_checkpoint_that_cannot_be_read_is_not_to_be_downloaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(BadInput, match="cannot be read") as caught:
        read_checkpoint(tmp_path / "weights.pt")
    assert "download" not in str(caught.value)


def test_the_checkpoint_is_hashed_once_and_not_at_all_in_the_hubs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file has gigabytes, and several prompts ask for it. One that was replaced is another."""
    read: list[Path] = []
    real = internvideo2.storage.file_sha256
    monkeypatch.setattr(internvideo2.storage, "file_sha256", lambda file: read.append(file) or real(file))
    file = tmp_path / "weights.pt"
    file.write_bytes(b"one")
    first = internvideo2.checkpoint_sha256(file)
    assert internvideo2.checkpoint_sha256(file) == first == hashlib.sha256(b"one").hexdigest() and len(read) == 1
    file.write_bytes(b"other")
    assert internvideo2.checkpoint_sha256(file) == hashlib.sha256(b"other").hexdigest() and len(read) == 2
    blob = tmp_path / "blobs" / hashlib.sha256(b"third").hexdigest()
    blob.parent.mkdir()
    blob.write_bytes(b"third")
    (tmp_path / "snapshot.pt").symlink_to(blob)
    assert internvideo2.checkpoint_sha256(tmp_path / "snapshot.pt") == blob.name and len(read) == 2
