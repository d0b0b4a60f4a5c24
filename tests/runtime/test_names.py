from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.runtime.names import natural_key, slug


@pytest.mark.parametrize("name", ["stand", "walk", "run", "one_foot", "lying_down", "high_kick"])
def test_a_prompt_never_shares_a_folder_with_the_task_of_its_name(name: str) -> None:
    assert slug(name) != name and slug(name).startswith(name.replace("_", "-"))


def test_a_video_is_named_by_what_it_shows() -> None:
    assert slug("walk", b"one video") != slug("walk", b"another of the same name")
    assert slug("walk", b"one video") == slug("walk", b"one video")


def test_numbers_in_names_are_in_order() -> None:
    names = [f"frame_{n}.png" for n in (1, 2, 9, 10, 11, 100)]
    assert sorted(reversed(names), key=natural_key) == names


def test_prompt_becomes_words_and_digest() -> None:
    assert re.fullmatch(r"stand-still-on-both-legs-[0-9a-f]{6}", slug("Stand still, on both legs!"))


def test_prompts_that_share_their_words_differ() -> None:
    assert slug("Walk fast!") != slug("walk, fast")


@given(st.text(max_size=300))
def test_always_a_safe_short_folder_name(text: str) -> None:
    name = slug(text)
    assert re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,46}", name), name
    assert slug(text) == name
