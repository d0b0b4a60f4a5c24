"""A dataset, a model and a policy of a run, from Python.

python examples/from_python.py runs/walker-laptop
"""

import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from torch.utils.data import DataLoader

import bitagent

run = Path(sys.argv[1])
policy_path = next(iter(sorted(run.glob("policy/*/*/artifact.json")))).parent

# A dataset: windows of 16 decisions, as PyTorch loads them.
windows = bitagent.load_dataset(run / "data" / "random", length=16)
batch = next(iter(DataLoader(windows, batch_size=4, shuffle=True)))
print(f"{len(windows)} windows; a batch of images is {tuple(batch['image'].shape)}")

# A model: what a text looks like to it.
model = bitagent.load_model(policy_path)
dream = model.imagine("walk fast", steps=12)
iio.imwrite("dream.gif", dream.transpose(0, 2, 3, 1), duration=80, loop=0)
print(f"imagined {len(dream)} frames of a text: dream.gif")

# A policy: an episode in the environment.
env = bitagent.make("walker-walk", obs="pixels")
policy = bitagent.load_policy(policy_path)
frame, _ = env.reset(seed=0)
policy.reset()
total = 0.0
for _ in range(50):
    action = policy.act(np.ascontiguousarray(frame.transpose(2, 0, 1)))
    frame, reward, _, truncated, _ = env.step(action)
    total += float(reward)
print(f"50 decisions earned {total:.1f} of 100")
