"""Started by test_pretrain under torchrun: the stage on a small run's folder."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from stages import pretrain
from tests.core.helpers import model_config
from tests.stages import small_run

if __name__ == "__main__":
    torch.set_num_threads(1)
    run = small_run.make_run(Path(sys.argv[1]))
    pretrain.run(small_run.pretrain_config(), model_config(), run, method=sys.argv[2])
