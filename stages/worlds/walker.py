"""Walker: the suite's planar biped, its stand, walk and run, and further poses (biped.py)."""

from __future__ import annotations

from functools import partial

from stages.worlds.biped import (
    BIPED_PHRASES,
    biped_behaviours,
    biped_features,
    biped_task,
    flipping,
    high_kick,
    lunge_pose,
    lying_down,
    one_foot,
    sit_knees,
)
from stages.worlds.body import Body, Task
from stages.worlds.suite import walker

BODY = Body(
    name="walker",
    model_xml=walker.get_model_and_assets()[0],
    physics=walker.Physics,
    control_timestep=0.025,
    camera=0,
    tasks=(
        Task("stand", "standing up straight", 150, 970, partial(walker.PlanarWalker, 0), training=True),
        Task("walk", "walk fast clean", 45, 960, partial(walker.PlanarWalker, 1), training=True),
        Task("run", "run fast clean", 30, 770, partial(walker.PlanarWalker, 8), training=True),
        Task("one_foot", "stand on one foot", 20, 955, biped_task(one_foot)),
        Task("high_kick", "stand up and kick", 25, 960, biped_task(partial(high_kick, height=1.2))),
        Task("lying_down", "lying down horizontally", 170, 975, biped_task(lying_down)),
        Task("sit_knees", "praying", 100, 945, biped_task(sit_knees)),
        Task("lunge_pose", "lunge_pose", 150, 945, biped_task(lunge_pose)),
        Task("flipping", "doing backflips", 20, 720, biped_task(flipping)),
    ),
    features=biped_features,
    behaviours=biped_behaviours,
    nouns=("robot", "walker", "two-legged robot", "stick figure", "figure", "biped"),
    phrases=BIPED_PHRASES,
)
