"""The README's first ten commands, in order, at smoke scale: each with its exit code and the line that it promises.

python -m tests.newcomer FOLDER        runs them in an empty folder, with the `bitagent` of this environment
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SMALL = "--scale smoke --out runs/walker-laptop"


@dataclass(frozen=True)
class Command:
    """A line of the README, what makes it small, and a pattern that a line of its output matches."""

    line: str
    promise: str
    small: str = SMALL


COMMANDS = (
    Command("bitagent doctor", r"ok +ray renderer", ""),
    Command("bitagent collect --preset walker", r"collect: \d datasets, \d+ frames, runs/walker-laptop/data"),
    Command("bitagent embed --preset walker", r"embed: \d datasets"),
    Command("bitagent pretrain --preset walker", r"pretrain: .* runs/walker-laptop/model/bitagent-s0"),
    Command("bitagent behave --preset walker --task walk", r"behave: .* runs/walker-laptop/policy/bitagent-s0/walk"),
    Command("bitagent evaluate --preset walker --task walk", r"evaluate: score walk -?\d\.\d\d ± "),
    Command("bitagent visualize --preset walker", r"visualize: open /.*/runs/walker-laptop/report/report\.html"),
    Command("bitagent runs", r"runs/walker-laptop/policy/bitagent-s0/walk +behave", ""),
    Command("bitagent demo runs/walker-laptop", r"“walk fast clean”\. Score -?\d", ""),
    Command("python examples/from_python.py runs/walker-laptop", r"50 decisions earned \d+\.\d of 100", ""),
)


def main(folder: Path) -> int:
    """Run them in `folder`; the number of those that did not keep their promise."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "examples").symlink_to(ROOT / "examples")
    place = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{place}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    broken = 0
    for command in COMMANDS:
        words = shlex.split(f"{command.line} {command.small}")
        ran = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
        kept = ran.returncode == 0 and any(re.search(command.promise, line) for line in ran.stdout.splitlines())
        print(f"{'ok    ' if kept else 'BROKEN'}  {shlex.join(words)}", flush=True)
        if not kept:
            broken += 1
            print(
                f"exit code {ran.returncode}; promised: {command.promise}\n{ran.stdout[-2000:]}\n{ran.stderr[-2000:]}"
            )
    print(f"{len(COMMANDS) - broken} passed, {broken} failed")
    return broken


if __name__ == "__main__":
    sys.exit(min(1, main(Path(sys.argv[1]))))
