"""Folder names from tasks and prompts."""

from __future__ import annotations

import hashlib
import re
import unicodedata

MAX_WORDS_LENGTH = 40


def slug(text: str) -> str:
    """A safe folder name for a task or a prompt.

    A task name (one lower-case word, underscores allowed) stays as it is. Any other text becomes its
    ASCII words in lower case joined by '-', cut at 40 characters, and 6 hex digits of its SHA-256, so
    that two prompts never share a folder: "Stand still!" → "stand-still-3f0c3e".
    """
    if re.fullmatch(r"[a-z][a-z0-9_]{0,39}", text):
        return text
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    words = "-".join(re.findall(r"[a-z0-9]+", ascii_text))[:MAX_WORDS_LENGTH].strip("-")
    digest = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()  # a file's name may not be Unicode
    return f"{words or 'prompt'}-{digest[:6]}"
