"""The caption grammar, and the behaviours its captions are true of, on states whose behaviour is plain."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
import pytest

from stages import worlds
from stages.backbones.offline import captions
from stages.worlds import motion, tasks

PROMPTS = frozenset(t.prompt.lower() for t in tasks.TASKS)


def held(domain: str, frames: int = 8, velocity: dict[str, float] | None = None, **joints: float) -> np.ndarray:
    """A window of one posture, its lowest geom on the floor: (frames, nq + nv). Joints and velocities by name."""
    model = worlds.compile_model(domain)
    data = mujoco.MjData(model)
    mujoco.mj_resetData(model, data)
    for name, value in joints.items():
        data.joint(name).qpos[0] = value
    for name, value in (velocity or {}).items():
        data.joint(name).qvel[0] = value
    mujoco.mj_kinematics(model, data)
    bottom = min(
        data.geom_xpos[g, 2] - abs(data.geom_xmat[g, 8]) * model.geom_size[g, 1] - model.geom_size[g, 0]
        for g in range(model.ngeom)
        if model.geom_bodyid[g] and model.geom_type[g] == mujoco.mjtGeom.mjGEOM_CAPSULE
    )
    data.qpos[
        model.joint("rootz" if domain != "quadruped" else "root").qposadr[0] + (2 if domain == "quadruped" else 0)
    ] -= bottom
    return np.tile(np.concatenate([data.qpos, data.qvel]), (frames, 1))


def classify(domain: str, states: np.ndarray) -> tuple[str, dict[str, float]]:
    """The behaviour class of the last window, and its memberships."""
    features = motion.window_features(worlds.compile_model(domain), domain, states, np.array([0, len(states)]))
    found = {k: float(v[-1]) for k, v in worlds.BODIES[domain].behaviours(features).items()}
    return max(captions.class_names(domain), key=found.__getitem__), found


KNEEL = {"right_knee": -2.2, "left_knee": -2.2}
PLAIN: list[tuple[str, dict[str, Any], str]] = [
    ("walker", {}, "stand"),
    ("walker", {"right_hip": 1.3, "right_knee": -1.0}, "one_leg"),
    ("walker", {"velocity": {"rootx": 1.2}}, "walk"),
    ("walker", {"velocity": {"rootx": 4.0}}, "run"),
    ("walker", {"velocity": {"rootx": -1.2}}, "backward"),
    ("walker", KNEEL, "kneel"),
    ("walker", {"rooty": -np.pi / 2}, "on_back"),
    ("walker", {"rooty": np.pi / 2}, "on_front"),
    ("walker", {"rooty": np.pi}, "upside_down"),
    ("walker", {"rooty": 1.0, "velocity": {"rooty": 6.0}}, "flip"),
    ("stickman", {}, "stand"),
    ("stickman", {"velocity": {"rootx": 4.0}}, "run"),
    ("stickman", {"rooty": -np.pi / 2}, "on_back"),
    ("cheetah", {}, "stand"),
    ("cheetah", {"velocity": {"rootx": 1.5}}, "walk"),
    ("cheetah", {"velocity": {"rootx": 5.0}}, "run"),
    ("cheetah", {"velocity": {"rootx": 9.0}}, "run"),
    ("cheetah", {"rooty": np.pi}, "upside_down"),
    ("cheetah", {"rooty": -np.pi / 2}, "hind_legs"),
    ("cheetah", {"rooty": np.pi / 2}, "nose"),
    ("quadruped", {}, "stand"),
]


@pytest.mark.parametrize(("domain", "posture", "name"), PLAIN)
def test_plain_postures_are_named(domain: str, posture: dict[str, Any], name: str) -> None:
    found, memberships = classify(domain, held(domain, **posture))
    assert found == name and memberships[name] > 0.5, memberships


def test_quadruped_motion_is_read_in_its_own_frame() -> None:
    states = held("quadruped")
    model = worlds.compile_model("quadruped")
    angle = 2.0  # facing another way than the world's x
    states[:, 3:7] = [np.cos(angle / 2), 0, 0, np.sin(angle / 2)]
    for speed, name in ((0.8, "walk"), (3.0, "run"), (-0.8, "backward")):
        states[:, model.nq : model.nq + 2] = speed * np.array([np.cos(angle), np.sin(angle)])
        assert classify("quadruped", states)[0] == name
    states[:, model.nq : model.nq + 2] = 0.8 * np.array([-np.sin(angle), np.cos(angle)])
    assert classify("quadruped", states)[0] == "sideways"


def test_memberships_are_soft_between_behaviours() -> None:
    speeds = np.linspace(0, 5, 26)
    shares = [classify("walker", held("walker", velocity={"rootx": v}))[1] for v in speeds]
    assert all(0 <= v <= 1 for s in shares for v in s.values())
    for name in ("stand", "walk", "run"):
        values = np.array([s[name] for s in shares])
        assert np.abs(np.diff(values)).max() < 0.45
    assert max(s["walk"] for s in shares) > 0.9


def test_windows_repeat_the_first_frame_and_stay_in_their_episode() -> None:
    rows = motion.window_rows(np.array([0, 3, 13]))
    assert rows.shape == (13, 8)
    assert rows[1].tolist() == [0] * 7 + [1]
    assert rows[3].tolist() == [3] * 8
    assert rows[12].tolist() == list(range(5, 13))


@pytest.mark.parametrize("domain", tasks.DOMAINS)
def test_grammar_covers_every_behaviour_and_keeps_test_sentences_apart(domain: str) -> None:
    grammar = captions.grammar(domain, PROMPTS)
    found = classify(domain, held(domain))[1]
    assert [c.name for c in grammar[:10]] == captions.class_names(domain)
    assert {c.name for c in grammar} == set(found)
    trained = [s.lower() for c in grammar for s in c.captions]
    for concept in grammar:
        assert len(concept.captions) >= 20 and concept.held_out
        for sentence in concept.held_out:  # no training sentence contains a held-out paraphrase, nor is one
            assert not any(sentence.lower() in other for other in trained), sentence
    assert not PROMPTS & set(trained)
    assert captions.grammar(domain, PROMPTS) == grammar  # the same words in every run


def test_a_caption_means_one_thing() -> None:
    for domain in tasks.DOMAINS:
        owner: dict[str, str] = {}
        for concept in captions.grammar(domain):
            for sentence in concept.captions:
                assert owner.setdefault(sentence, concept.name) == concept.name, sentence


def test_verbs_are_conjugated() -> None:
    for phrase, base in (
        ("walking fast", "walk fast"), ("running", "run"), ("lying down", "lie down"), ("sitting on it", "sit on it"),
        ("falling over", "fall over"), ("racing", "race"), ("kneeling", "kneel"), ("tumbling", "tumble"), ("passing", "pass"),
    ):  # fmt: skip
        assert captions.base_form(phrase) == base
