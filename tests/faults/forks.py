"""Commands in processes that can be killed: a server that has everything imported forks one for each.

    with Door() as door:
        ended = door.run("pretrain", "--scale", "smoke", "--out", root, signals=[(0.4, signal.SIGKILL)])

A fork is a process of its own, with its own memory, locks and signals; it only saves the seconds that
importing PyTorch takes. `python -m tests.faults.forks` is the server.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TOO_LONG = 1200.0  # seconds: a command of this size that takes longer hangs, even on a machine that is busy


@dataclass(frozen=True)
class Ended:
    """How a command ended: `code` as a shell reports it (137 for SIGKILL); `after` runs from the last signal.

    `seconds` are on the clock, `processor` the command's own.
    """

    code: int
    seconds: float
    processor: float
    after: float
    signals: int
    hung: bool
    stdout: str
    stderr: str

    @property
    def last_line(self) -> str:
        return (self.stderr.strip().splitlines() or [""])[-1]


class Door:
    """The server, started when first needed, and a pipe to it."""

    server: subprocess.Popen[str] | None = None

    def __enter__(self) -> Door:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        """End the server and what it runs; left in the middle of an order, it would answer the next one with that."""
        if self.server:
            os.killpg(self.server.pid, signal.SIGKILL)
            self.server.wait()
            self.server = None

    def _start(self) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.forks"],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        return self.server

    def run(
        self,
        *words: str | Path,
        signals: Sequence[tuple[float, int]] = (),
        once: str = "",
        largest_file: int | None = None,
    ) -> Ended:
        """Run `bitagent <words>` to its end.

        Args:
            signals: (seconds of the command's own processor time since the one before, signal), to send in turn. On a
                busy machine this is the same moment of the command's work as on an idle one.
            once: the time of the first begins when something matches this absolute glob.
            largest_file: bytes; writing more into one file fails (EFBIG).
        """
        return self.together([words], signals=signals, once=once, largest_file=largest_file)[0]

    def together(
        self,
        commands: Sequence[Sequence[str | Path]],
        *,
        signals: Sequence[tuple[float, int]] = (),
        once: str = "",
        largest_file: int | None = None,
    ) -> list[Ended]:
        """Run several commands at the same time."""
        server = self.server or self._start()
        assert server.stdin and server.stdout
        order = {
            "commands": [[str(word) for word in words] for words in commands],
            "signals": [[delay, int(signum)] for delay, signum in signals],
            "once": once,
            "largest_file": largest_file,
        }
        try:
            server.stdin.write(json.dumps(order) + "\n")
            server.stdin.flush()
            return [Ended(**one) for one in json.loads(server.stdout.readline())]
        except BaseException:  # a test's time limit, or Ctrl-C
            self._stop()
            raise


# ---------------------------------------------------------------------------- the server


def serve() -> None:
    """Answer orders from stdin, one a line, until it is closed."""
    answers = os.fdopen(os.dup(1), "w")  # stdout itself is the commands'
    warm_up()
    for line in sys.stdin:
        answers.write(json.dumps(obey(json.loads(line))) + "\n")
        answers.flush()


def warm_up() -> None:
    """Import what any command would, and encode the captions of the walker: they are the same in every `embed`."""
    import torch

    from bitagent_cli import session  # noqa: F401
    from stages import behave, collect, embed, evaluate, pretrain, transfer, visualize  # noqa: F401
    from stages.backbones.offline import captions
    from stages.backbones.offline.tower import TextTower
    from stages.worlds import tasks

    with suppress(ImportError):
        import torch.utils.tensorboard
    torch.set_num_threads(1)
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])  # imports much of PyTorch
    encode, tower = TextTower.encode, TextTower()
    prompts = frozenset(task.prompt.lower() for task in tasks.TASKS)
    known = {c.captions: encode(tower, c.captions) for c in captions.grammar("walker", prompts)}

    def remember(tower: TextTower, texts: Sequence[str]) -> torch.Tensor:
        found = known.get(tuple(texts))
        return encode(tower, texts) if found is None else found.clone()

    TextTower.encode = remember  # type: ignore[method-assign]


def obey(order: dict[str, Any]) -> list[dict[str, Any]]:
    """Fork the commands of an order, send the signals, wait for all."""
    with ExitStack() as stack:
        outputs = [[stack.enter_context(tempfile.TemporaryFile()) for _ in range(2)] for _ in order["commands"]]
        processes = [
            fork(words, [file.fileno() for file in output], order["largest_file"])
            for words, output in zip(order["commands"], outputs, strict=True)
        ]
        ends = follow(processes, order["signals"], order["once"])
        for end, output in zip(ends, outputs, strict=True):
            for name, file in zip(("stdout", "stderr"), output, strict=True):
                file.seek(0)
                end[name] = file.read().decode(errors="replace")
        return ends


def fork(words: list[str], output: list[int], largest_file: int | None) -> int:
    """Start one command; returns its process id once the command itself is about to run.

    Args:
        output: open files for stdout and stderr. They exist before the process does, which may be killed at any moment.
    """
    told, tell = os.pipe()
    process = os.fork()
    if process:
        os.close(tell)
        os.read(told, 1)
        os.close(told)
        return process
    code = 1
    try:
        for number, file in zip((1, 2), output, strict=True):
            os.dup2(file, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a script ignores it in the background
        os.close(tell)
        code = call(words)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def call(words: list[str]) -> int:
    """The program itself, with its exit code; a traceback goes to stderr as the interpreter's would."""
    import traceback

    from bitagent_cli.app import app

    try:
        app(words, prog_name="bitagent")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def follow(processes: list[int], signals: list[tuple[float, int]], once: str) -> list[dict[str, Any]]:
    """Wait for the processes, sending each signal in its turn to all that still run."""
    parent, began = os.getppid(), time.monotonic()
    waiting, left = {process: index for index, process in enumerate(processes)}, list(signals)
    ends: list[dict[str, Any]] = [{} for _ in processes]
    due = left[0][0] if left and not once else math.inf
    last, sent, hung = began, 0, False
    while waiting:
        now, used = time.monotonic(), processor_seconds(next(iter(waiting)))
        if due == math.inf and left and there(once):
            due = used + left[0][0]
        if used >= due:
            _, signum = left.pop(0)
            for process in waiting:
                os.kill(process, signum)
            due, last, sent = used + left[0][0] if left else math.inf, now, sent + 1
        if os.getppid() != parent:  # whoever gave the order is gone: leave nothing running behind it
            for process in waiting:
                os.kill(process, signal.SIGKILL)
            os._exit(1)
        if now - began > TOO_LONG and not hung:
            hung = True
            for process in waiting:
                os.kill(process, signal.SIGKILL)
        for process in list(waiting):
            found, status, usage = os.wait4(process, os.WNOHANG)
            if found:
                code = os.waitstatus_to_exitcode(status)
                ends[waiting.pop(process)] = {
                    "code": code if code >= 0 else 128 - code,
                    "seconds": time.monotonic() - began,
                    "processor": usage.ru_utime + usage.ru_stime,
                    "after": time.monotonic() - last,
                    "signals": sent,
                    "hung": hung,
                }
        time.sleep(0.004)
    return ends


def processor_seconds(process: int) -> float:
    """Processor time that a process has used, over all its threads."""
    clock = ctypes.c_int()
    if ctypes.CDLL(None).clock_getcpuclockid(process, ctypes.byref(clock)):
        raise ProcessLookupError(f"no process {process}")
    return time.clock_gettime(clock.value)


def there(pattern: str) -> bool:
    return any(Path("/").glob(pattern.lstrip("/")))


if __name__ == "__main__":
    serve()
