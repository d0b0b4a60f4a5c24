"""Video-language backbones behind one small interface.

backbone = load_backbone("offline", Path("runs/walker-laptop"), "cpu")
e = backbone.encode_video(frames)       # uint8 (N, 8, 3, H, W) → (N, dim), unit norm
y = backbone.encode_text(["walk fast"]) # (1, dim), unit norm
"""

from __future__ import annotations

from pathlib import Path

from stages.backbones.base import Backbone
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run
from stages.runtime.errors import BadInput

__all__ = ["Backbone", "load_backbone"]


def load_backbone(name: str, run_root: Path, device: str) -> Backbone:
    """Load a backbone, frozen.

    Args:
        name: `offline` (trained in this run), `internvideo2`, or the Hugging Face id or local folder of
            an X-CLIP, VideoPrism, PE-Video, SigLIP, SigLIP 2 or CLIP model.
        run_root: the run's folder, which holds `backbone/` for `offline`.

    Raises:
        BadInput: it is missing, gated, corrupted or of another kind; says which, and what to do.
    """
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


def backbone_id(embeddings: Artifact, name: str, run: Run) -> str:
    """The id of the backbone behind embeddings. Imported ones do not say: then it is the run's own of that name."""
    found: str | None = embeddings.meta["extra"].get("backbone_id")
    return found or load_backbone(name, run.root, run.device).id
