"""Video-language backbones behind one small interface.

backbone = load_backbone("offline", Path("runs/walker-laptop"), "cpu")
e = backbone.encode_video(frames)       # uint8 (N, 8, 3, H, W) → (N, dim), unit norm
y = backbone.encode_text(["walk fast"]) # (1, dim), unit norm
"""

from __future__ import annotations

from pathlib import Path

from stages.backbones.base import Backbone
from stages.data.catalog import reads_enlarged
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run
from stages.runtime.errors import BadInput

__all__ = ["Backbone", "backbone_id", "backbone_of", "load_backbone"]


def load_backbone(name: str, run_root: Path, device: str, enlarged: bool = False) -> Backbone:
    """Load a backbone, frozen.

    Args:
        name: `offline` (trained in this run), `internvideo2`, or the Hugging Face id or local folder of
            an X-CLIP, VideoPrism, PE-Video, SigLIP, SigLIP 2 or CLIP model.
        run_root: the run's folder, which holds `backbone/` for `offline`.
        enlarged: whether it is to read enlarged frames, see `Backbone.enlarge`.

    Raises:
        BadInput: it is missing, gated, corrupted or of another kind; says which, and what to do.
    """
    backbone = _load(name, run_root, device)
    if enlarged:
        backbone.enlarge()
    return backbone


def _load(name: str, run_root: Path, device: str) -> Backbone:
    if not name.strip():
        raise BadInput("the backbone's name is empty: use offline, internvideo2, or a Hugging Face id or folder")
    if name == "offline":
        from stages.backbones.offline.tower import load_offline

        return load_offline(run_root, device)
    if name == "internvideo2":
        from stages.backbones.internvideo2 import load_internvideo2

        return load_internvideo2(device)
    from stages.backbones.hub import load_hub

    return load_hub(name, device)


def backbone_of(made: Artifact, name: str, run_root: Path, device: str, again: str) -> Backbone:
    """The backbone behind embeddings, a model or a policy, reading its frames as it did then.

    Args:
        again: the command line that makes it with the backbone as it is now.
    Raises BadInput when it cannot be loaded or has changed.
    """
    backbone = load_backbone(name, run_root, device, reads_enlarged(made))
    wanted = made.meta["extra"].get("backbone_id", backbone.id)  # imported embeddings do not say
    if backbone.id != wanted:
        raise BadInput(
            f"{made.path} was made with backbone {wanted}, here is {backbone.id}; make it again with: {again}"
        )
    return backbone


def backbone_id(embeddings: Artifact, name: str, run: Run) -> str:
    """The id of the backbone behind embeddings. Imported ones do not say: then it is the run's own of that name."""
    found: str | None = embeddings.meta["extra"].get("backbone_id")
    return found or load_backbone(name, run.root, run.device, reads_enlarged(embeddings)).id
