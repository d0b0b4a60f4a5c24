"""Started by test_pretrain and test_tuned under torchrun: the stage on a small run's folder.

torchrun --nproc-per-node 2 tests/stages/pretrain_worker.py FOLDER METHOD MODE
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from stages import pretrain
from stages.backbones.tuning import MllmConfig
from tests.core.helpers import model_config
from tests.stages import small_run

if __name__ == "__main__":
    torch.set_num_threads(1)
    run = small_run.make_run(Path(sys.argv[1]))
    mllm = MllmConfig(train=sys.argv[3], last_k=2, lora_rank=2)  # type: ignore[arg-type]
    pretrain.run(pretrain.Sections(small_run.pretrain_config(), model_config(), mllm=mllm), run, method=sys.argv[2])
