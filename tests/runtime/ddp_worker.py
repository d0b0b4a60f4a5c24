"""Started by test_distributed under torchrun: joint updates on this process's share of every global batch.

torchrun --nproc-per-node 2 tests/runtime/ddp_worker.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from stages.core.joint_model import JointModel
from stages.pretrain import Config, JointObjective, build_update
from stages.runtime.distributed import World, world
from stages.runtime.update import make_optimizer
from tests.core.helpers import dynamics_config, make_batch, make_labels, make_model, objective_config

UPDATES, BATCH = 20, 4

CONFIG = Config(
    backbone="offline",
    updates=UPDATES,
    batch=BATCH,
    length=8,
    lr=1e-3,
    weight_decay=0.01,
    anneal=0.0,
    clip=1.0,
    start_fraction=0.1,
    holdout=0.0,
    label_quantile=0.5,
    bf16=False,
    compile="off",
    log_every=10,
    checkpoint_every=10,
    objective=objective_config(),
    dynamics=dynamics_config(),
)


def train(place: World) -> tuple[JointModel, Tensor]:
    """The model after UPDATES updates, and the gradient norm of each."""
    model = make_model()
    optimizer = make_optimizer(list(model.parameters()), CONFIG.lr, CONFIG.weight_decay)
    update = build_update(JointObjective(model, make_labels(), CONFIG.objective, place), optimizer, CONFIG, place)
    share = BATCH // place.size
    mine = slice(place.rank * share, (place.rank + 1) * share)
    torch.manual_seed(7)
    norms = []
    for step in range(UPDATES):
        batch = make_batch(BATCH, CONFIG.length, seed=step, starts=((0, 0), (3, 0)))
        norms.append(update({k: v[mine] for k, v in batch.items()})["grad_norm"])
    return model, torch.stack(norms)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with world("cpu") as place:
        model, norms = train(place)
        told = torch.tensor([place.any(place.rank == 1), place.any(False)])
        stops = []
        for step in range(4):
            stops.append(place.stops_at(step, place.rank == 1 and step == 2))
            place.barrier()  # as the gradients of an update join
        save_file(
            {**model.state_dict(), "norms": norms, "told": told, "stops": torch.tensor(stops)},
            str(folder / f"rank-{place.rank}.safetensors"),
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
