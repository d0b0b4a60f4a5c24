"""Transitions in pixels: which frames, actions and rewards they hold, and how frames are shifted."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.methods.pixels import PixelEncoder, random_shift, transitions
from stages.policies.policy import batched

STACK, STEPS = 3, 2


def windows(first: tuple[int, ...] = (), terminal: tuple[int, ...] = ()) -> tuple[dict[str, Tensor], Tensor]:
    """Four windows of five 2 × 2 frames; a frame's pixels are 10 × window + time, and so are action and reward."""
    number = 10 * torch.arange(4)[:, None] + torch.arange(STACK + STEPS)  # (B, T)
    is_first = torch.zeros(4, 5, dtype=torch.bool)
    is_terminal = torch.zeros(4, 5, dtype=torch.bool)
    for window in first:
        is_first[window, 0] = True
    for window in terminal:
        is_terminal[window, -1] = True
    image = number[..., None, None, None].expand(-1, -1, 3, 2, 2).to(torch.uint8)
    action = number[..., None].float().expand(-1, -1, 2)
    return {"image": image, "action": action, "is_first": is_first, "is_terminal": is_terminal}, number.float()


def seen(stack: Tensor) -> list[list[int]]:
    """The frame each third of the channels shows."""
    assert stack.shape[1:] == (3 * STACK, 2, 2)
    return stack.unflatten(1, (STACK, 3)).float().mean((2, 3, 4)).long().tolist()


def test_a_transition_is_the_last_frames_the_action_after_them_and_the_rewards_it_earns() -> None:
    batch, reward = windows()
    found = transitions(batch, reward, STACK, STEPS, 0.5)
    assert seen(found["obs"]) == [[0, 1, 2], [10, 11, 12], [20, 21, 22], [30, 31, 32]]
    assert seen(found["next_obs"]) == [[2, 3, 4], [12, 13, 14], [22, 23, 24], [32, 33, 34]]
    assert found["action"][:, 0].tolist() == [3, 13, 23, 33], "action[t + 1] is what was done at frame t"
    assert found["reward"].tolist() == [3 + 0.5 * 4, 13 + 0.5 * 14, 23 + 0.5 * 24, 33 + 0.5 * 34]
    assert found["discount"].tolist() == [0.25] * 4


def test_an_episodes_first_frame_stands_for_those_before_it() -> None:
    batch, reward = windows(first=(1,))
    found = transitions(batch, reward, STACK, STEPS, 0.5)
    assert seen(found["obs"])[1] == [10, 10, 10] and seen(found["next_obs"])[1] == [10, 11, 12]
    assert found["action"][1, 0] == 11 and found["reward"][1] == 11 + 0.5 * 12
    assert seen(found["obs"])[0] == [0, 1, 2]


def test_nothing_follows_a_terminal_frame() -> None:
    batch, reward = windows(first=(3,), terminal=(2, 3))
    assert transitions(batch, reward, STACK, STEPS, 0.5)["discount"].tolist() == [0.25, 0.25, 0.0, 0.25]


def test_a_shift_is_padding_by_replication_and_a_crop() -> None:
    image = torch.randint(0, 256, (6, 4, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    shift = torch.tensor([[0, 0], [2, -1], [-2, 2], [1, 1], [-1, 0], [0, -2]])
    padded = F.pad(image.float(), (2, 2, 2, 2), mode="replicate").to(torch.uint8)
    wanted = [padded[i, :, 2 + y : 10 + y, 2 + x : 10 + x] for i, (y, x) in enumerate(shift.tolist())]
    assert torch.equal(random_shift(image, shift), torch.stack(wanted))


def test_encoder_sees_every_frame_of_the_stack() -> None:
    encoder = PixelEncoder(2, STACK, 7)
    image = torch.randint(0, 256, (2, 9, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = encoder(image)
    assert found.shape == (2, 7) and found.abs().max() < 1
    for frame in range(STACK):
        other = image.clone()
        other[:, 3 * frame] = 0
        assert not torch.equal(encoder(other), found)


def test_frames_in_any_layout_become_a_batch() -> None:
    """Mirrored (negative strides) and read-only frames, too."""
    frame = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4)
    mirrored = frame[:, :, ::-1]
    mirrored.flags.writeable = False
    found = batched(mirrored, torch.device("cpu"))
    assert found.shape == (1, 3, 4, 4) and np.array_equal(found[0].numpy(), mirrored)
