"""Names: folders of tasks and prompts, the methods of `--method`, and the method behind an artifact's label.

What a method changes in the preset is the block of its name under `methods` in presets/paper.yaml; which class
implements it is chosen in stages/methods.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
import unicodedata

from stages.runtime.errors import BadInput

MAX_WORDS_LENGTH = 40


def slug(text: str, content: bytes | None = None) -> str:
    """A safe folder name for a prompt, or for a video by its name and `content`.

    Its ASCII words in lower case joined by '-', cut at 40 characters, and 6 hex digits of the SHA-256 of the text or
    the content: two prompts or two videos never share a folder, nor one with a task, whose name has no digits behind a
    dash. "Stand still!" → "stand-still-3f0c3e".
    """
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    words = "-".join(re.findall(r"[a-z0-9]+", ascii_text))[:MAX_WORDS_LENGTH].strip("-")
    content = text.encode(errors="surrogateescape") if content is None else content  # a file's name may not be Unicode
    return f"{words or 'prompt'}-{hashlib.sha256(content).hexdigest()[:6]}"


def natural_key(name: str) -> list[tuple[int, str]]:
    """A sorting key by which numbers inside names count as numbers: frame_2 comes before frame_10."""
    return [(int(p), "") if p.isascii() and p.isdigit() else (-1, p) for p in re.split(r"(\d+)", name)]


def backbone_folder(name: str) -> str:
    """The folder name of a backbone's embeddings: 'google/siglip2-base' → 'google--siglip2-base'.

    Raises BadInput for a name that would be hidden or leave the folder of all embeddings.
    """
    found = posixpath.normpath(name).strip("/").replace("/", "--")
    if not found or found.startswith(".") or not found.isprintable():
        raise BadInput(f"{name!r} cannot name a folder of embeddings: give a Hugging Face id, or a folder's full path")
    return found


# ---------------------------------------------------------------------------- methods


MODEL_FREE = ("iql", "td3-bc", "td3")  # learned from pixels without a world model
TRANSFER, CONTROL = "transfer-", "control"  # <method>-transfer-<source or control>
# policy/<method>-oracle-s<seed>, <method>-data-free-s<seed>: trained on the true reward, on no data
ORACLE, DATA_FREE = "-oracle", "-data-free"


def base_method(label: str) -> str:
    """The method of a label: 'genrl-transfer-walker' → 'genrl', 'transfer-walker' → 'bitagent', 'td3-oracle' → 'td3'"""
    return re.sub(r"-?transfer-.*", "", label.removesuffix(DATA_FREE).removesuffix(ORACLE)) or "bitagent"


def transfer_source(label: str) -> str:
    """'genrl-transfer-walker' → 'walker'; CONTROL for the same budget from scratch; '' for any other label."""
    return label.partition(TRANSFER)[2]


def method_option(method: str) -> tuple[str, ...]:
    """The option of a command line that chooses a method; nothing for the default."""
    return () if method == "bitagent" else ("--method", method)


def is_model_free(method: str) -> bool:
    """Whether a method, or the method of a label, has no world model to pretrain."""
    return base_method(method) in MODEL_FREE
