"""`bitagent demo`: a small trained policy that comes with BiTAgent, played at once."""

from __future__ import annotations

from pathlib import Path

from bitagent_cli import presets
from stages.policies.packing import shrink
from stages.report.card import model_card
from stages.report.figures import save_gif
from stages.report.performance import PAUSE, film_of, perform
from stages.report.scene import Scene
from stages.runtime import artifacts, storage
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run
from stages.runtime.errors import BadInput

MAKE = "bitagent demo --make runs/walker-laptop/policy/bitagent-s0/stand+walk+run"
NOTE = "Small enough to come with the code: 8 bits a weight, 16 in the actor, no critics."


def demo_folder() -> Path:
    """Where the shipped demo is: beside this file once installed, in demo/ in a checkout."""
    installed = Path(__file__).with_name("demo_files")
    return installed if installed.is_dir() else Path(__file__).resolve().parents[1] / "demo"


def policies_in(folder: Path) -> list[Artifact]:
    """The policies of a run folder. Raises BadInput when it has none."""
    found = artifacts.find(folder, "policy/*/*", "behave")
    if not found:
        raise BadInput(f"{folder} holds no policy to play; from a finished run: {MAKE} --out {folder}")
    return found


def open_demo(folder: Path, device: str, quiet: bool) -> Scene:
    """The run in a folder as a scene: its first policy decides the method and the seed.

    Raises BadInput when there is no policy.
    """
    first = policies_in(folder)[0]
    scale, method = first.meta["resolved"].get("scale", "laptop"), str(first.meta["config"]["method"])
    run = Run(first.domain, scale, folder, int(first.meta["seed"]), device, quiet=quiet)
    return Scene(presets.resolve(first.domain, scale).visualize, run, method, judge_reward=False, folder=folder)


def play_demo(scene: Scene, prompt: str | None, gif: Path) -> None:
    """Play one episode for a prompt, by default the last that was learned; write the film and print the score."""
    shown = perform(scene, prompt or list(scene.policies)[-1])
    gif.parent.mkdir(parents=True, exist_ok=True)
    storage.replace_file(gif, lambda draft: save_gif(draft, film_of(shown), PAUSE))
    print(shown.caption)
    print(f"the policy, the text imagination beside it and the reward along the episode are in {gif}")


def make_demo(policy: Path, out: Path) -> None:
    """Write a policy of a finished run, small, with its backbone and its card, to `out`."""
    source = artifacts.load(policy, "behave")
    with storage.draft(out) as draft:
        shrink(source, draft)
        use = "bitagent demo\nbitagent demo --serve"
        (draft / "README.md").write_text(model_card(source, use, NOTE))
        storage.replace_folder(draft, out)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{out}: {size / 1e6:.1f} MB, made from {source.path}")
