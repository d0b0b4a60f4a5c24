from __future__ import annotations

import pytest

from bitagent_cli.options import check_text, split_names
from stages.runtime.errors import BadInput


def test_text_is_stripped_and_unicode_is_fine() -> None:
    assert check_text("  站起来 schön  ") == "站起来 schön"


@pytest.mark.parametrize("text", ["", "   ", "a" * 2001, "walk\nrun", "walk\x00", "\x1b[31mred", "a\u0007b"])
def test_unusable_text_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        check_text(text)


def test_length_limit_is_inclusive() -> None:
    assert len(check_text("a" * 2000)) == 2000


def test_names_are_split() -> None:
    assert split_names(None) is None
    assert split_names("stand, walk,run") == ["stand", "walk", "run"]
    with pytest.raises(BadInput):
        split_names(" , ")
