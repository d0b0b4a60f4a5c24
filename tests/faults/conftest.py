"""One undisturbed pipeline for all tests of faults, whichever worker of pytest-xdist comes first."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from filelock import FileLock

from tests.faults.forks import Door
from tests.faults.pipeline import Pipeline


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with Door() as door:
        with FileLock(str(shared / "sound.lock")):
            built = Pipeline(door, shared / "sound").build()
        yield built
