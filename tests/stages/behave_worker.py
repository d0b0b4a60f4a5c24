"""Started by test_behave under torchrun: the stage on the folder of a run that has a model.

torchrun --nproc-per-node 2 tests/stages/behave_worker.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from stages import behave
from stages.policies.goals import Ask, Variant
from tests.stages import small_run
from tests.stages.test_behave import PARALLEL

if __name__ == "__main__":
    torch.set_num_threads(1)
    behave.run(PARALLEL, small_run.make_run(Path(sys.argv[1])), Ask(task="run"), Variant(method="parallel"))
