"""reproduce.mk itself, run by make over a stand-in for the program that only dates the artifacts it would make."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from stages.worlds import tasks

REPOSITORY = Path(__file__).resolve().parents[1]
SOME = ("DOMAINS=walker stickman", "METHODS=bitagent iql")

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")

STAND_IN = """#!/bin/sh
shift 2  # -m bitagent_cli
stage=$1 line=$* method=
while [ $# -gt 0 ]; do
  case $1 in
    --out) root=$2 ;; --preset) domain=$2 ;; --method) method=$2 ;;
    --seed) seed=$2 ;; --task) task=$2 ;; --src) src=$2 ;;
  esac
  shift
done
[ "$FAIL_AT" = "$stage" ] && exit 2
tasks='stand walk run'
[ "$domain" = cheetah ] && tasks=run
[ "$method" = bitagent ] && prefix= || prefix=$method-
moved=${prefix}transfer-$src-s$seed
case $stage in
  collect) made=data/random; for t in $tasks; do made="$made data/expert-$t"; done; made="$made data/branch" ;;
  embed) in=embeddings/offline; made="$in/random $in/branch"; for t in $tasks; do made="$made $in/expert-$t"; done ;;
  pretrain) made=model/$method-s$seed ;;
  behave) made=policy/$method-s$seed/$task ;;
  evaluate) made=evaluation/$method-s$seed/$task ;;
  transfer) made=model/$moved; for t in $tasks; do made="$made policy/$moved/$t evaluation/$moved/$t"; done ;;
  visualize) made=report ;;
esac
echo "$line" >> LOG
for name in $made; do
  mkdir -p "$root/$name" && touch "$root/$name/artifact.json"
done
"""


class Project:
    """A runs folder, an environment that counts as installed, and a log of what make ran."""

    def __init__(self, folder: Path) -> None:
        self.runs, self.venv, self.log = folder / "runs", folder / "venv", folder / "log"
        (self.venv / "bin").mkdir(parents=True)
        python = self.venv / "bin" / "python"
        python.write_text(STAND_IN.replace("LOG", str(self.log)))
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
        (self.venv / ".installed").touch()

    def make(self, *words: str, code: int = 0, **environment: str) -> list[str]:
        """The lines make prints."""
        command = ["make", f"RUNS={self.runs}", f"VENV={self.venv}", "SCALE=smoke", *words]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")} | environment
        done = subprocess.run(command, cwd=REPOSITORY, env=clean, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stderr
        return done.stdout.splitlines()

    def reproduce(self, *words: str, code: int = 0, **environment: str) -> list[str]:
        """The commands that ran, in order."""
        self.log.write_text("")
        self.make("reproduce", *words, code=code, **environment)
        return self.log.read_text().splitlines()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def stages(lines: list[str]) -> Counter[str]:
    return Counter(line.split()[0] for line in lines)


def test_everything_of_the_paper_is_asked_for_once(project: Project) -> None:
    printed = project.make("-n", "reproduce")
    lines = [line.partition("bitagent_cli ")[2] for line in printed]
    assert all(lines) and len(lines) == len(set(lines))  # nothing but commands, one a line
    found = stages(lines)
    cells = sum(len(tasks.task_names(d)) for d in tasks.DOMAINS) * 7 + 3 * 3  # Table 1, and Table 2's own rows
    cells += 2 * sum(len(tasks.task_names(d, training_only=False)) - len(tasks.task_names(d)) for d in tasks.DOMAINS)
    assert (found["behave"], found["evaluate"]) == (cells, cells)
    assert (found["collect"], found["embed"], found["transfer"]) == (4, 4, 6 * 4)
    assert found["pretrain"] == 4 * 4 + 3 + 3  # model-based methods, ablations, what Fig. 3 carries over without TAMF
    assert found["visualize"] == 4 + 1


def test_variables_choose_a_part(project: Project) -> None:
    lines = project.reproduce("DOMAINS=walker", "SEEDS=0 1", "METHODS=genrl ablation-base")
    assert stages(lines) == {"collect": 1, "embed": 1, "pretrain": 4, "behave": 18, "evaluate": 18, "visualize": 2}
    unseen = [line for line in lines if line.startswith("behave") and "--task flipping" in line]
    assert len(unseen) == 1 and "--method genrl --seed 0" in unseen[0]  # zero-shot prompts: of the first seed
    assert not [line for line in project.make("-n", "reproduce", "ZERO_SHOT=", *SOME) if "--task flipping" in line]
    assert not [line for line in lines if "cheetah" in line]


def test_a_second_run_does_nothing(project: Project) -> None:
    lines = project.reproduce("-j8", *SOME)
    assert len(lines) == len(set(lines))
    assert project.reproduce(*SOME) == []
    assert {str(p) for p in project.runs.rglob("artifact.json")} == set(project.make("-s", "targets", *SOME))


def test_a_deleted_policy_takes_its_score_and_the_pages_along(project: Project) -> None:
    project.reproduce(*SOME)
    shutil.rmtree(project.runs / "walker-smoke" / "policy" / "iql-s0" / "run")
    lines = project.reproduce(*SOME)
    assert [line.split()[0] for line in lines] == ["behave", "evaluate", "visualize", "visualize"]
    assert all("--preset walker" in line for line in lines[:3]) and "--method iql --seed 0 --task run" in lines[0]
    assert "--paper" in lines[-1]


def test_a_deleted_model_takes_what_was_carried_over_from_it_along(project: Project) -> None:
    project.reproduce(*SOME)
    shutil.rmtree(project.runs / "walker-smoke" / "model" / "bitagent-s0")
    lines = project.reproduce(*SOME)
    assert stages(lines) == {"pretrain": 1, "behave": 9, "evaluate": 9, "transfer": 1, "visualize": 3}
    assert all("--preset walker" in line for line in lines if line.split()[0] in ("pretrain", "behave", "evaluate"))
    assert next("--preset stickman" in line for line in lines if line.startswith("transfer"))


def test_deleted_data_is_collected_again_and_nothing_of_another_body(project: Project) -> None:
    chosen = (SOME[0], "METHODS=iql")
    project.reproduce(*chosen)
    shutil.rmtree(project.runs / "stickman-smoke" / "data" / "random")
    lines = project.reproduce(*chosen)
    assert stages(lines) == {"collect": 1, "embed": 1, "behave": 3, "evaluate": 3, "visualize": 2}
    assert not [line for line in lines if "walker" in line]


def test_one_score_of_a_transfer_is_scored_again(project: Project) -> None:
    project.reproduce(*SOME)
    shutil.rmtree(project.runs / "stickman-smoke" / "evaluation" / "transfer-walker-s0" / "run")
    assert stages(project.reproduce(*SOME)) == {"transfer": 1, "visualize": 2}


def test_what_failed_is_what_goes_on(project: Project) -> None:
    wanted = project.make("-n", "reproduce", *SOME)
    before = project.reproduce("-j4", *SOME, code=2, FAIL_AT="evaluate")
    assert not stages(before)["evaluate"] and stages(before)["collect"] == 2
    after = project.reproduce(*SOME)
    assert not set(before) & set(after)
    assert len([*before, *after]) == len(wanted)


def test_a_launcher_comes_before_every_heavy_command(project: Project) -> None:
    lines = project.make("-n", "reproduce", "LAUNCH=srun --gpus 1", *SOME)
    heavy = [line for line in lines if "--paper" not in line]
    assert len(heavy) > 20
    assert all(line.startswith("srun --gpus 1 ") for line in heavy)


def test_a_stopped_recipe_keeps_what_it_finished(project: Project) -> None:
    """make deletes the targets of a recipe that it kills, unless they are precious."""
    database = project.make("-np", "targets", *SOME)
    precious = next(line for line in database if line.startswith(".PRECIOUS:"))
    assert set(project.make("-s", "targets", *SOME)) <= set(precious.split())
