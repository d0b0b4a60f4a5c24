from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.runtime.names import slug


@pytest.mark.parametrize("name", ["stand", "walk", "run", "one_foot", "lying_down", "high_kick"])
def test_task_names_stay(name: str) -> None:
    assert slug(name) == name


def test_prompt_becomes_words_and_digest() -> None:
    assert re.fullmatch(r"stand-still-on-both-legs-[0-9a-f]{6}", slug("Stand still, on both legs!"))


def test_prompts_that_share_their_words_differ() -> None:
    assert slug("Walk fast!") != slug("walk, fast")


@given(st.text(max_size=300))
def test_always_a_safe_short_folder_name(text: str) -> None:
    name = slug(text)
    assert re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,46}", name), name
    assert slug(text) == name
