"""Jobs in spawned processes that report progress, stop when asked and never outlive the command.

    with Pool(workers=2, stop=stop, report=bar) as pool:
        pool.submit("walk", train, job)                 # train(job, channel)
        for label, result in pool.results():            # in order of completion; may submit more
            ...

With one worker the jobs run in this process, one after the other.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from stages.runtime.errors import BadInput


def usable_cores() -> int:
    """Cores this process may run on: a container or taskset may allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


Figure = float | str | None  # the return of the last episode, or words for the bar
Report = Callable[[str, int, Figure], None]
POLL_SECONDS = 0.2


@dataclass
class Channel:
    """What a job is handed to talk to the process that shows the progress bar.

    `stopped` tells whether the job should save what it has and return.
    """

    label: str
    stopped: Callable[[], bool]
    on_report: Report

    def report(self, frames: int, figure: Figure = None) -> None:
        """Tell that `frames` more are done, and the return of the last episode or other words for the bar."""
        self.on_report(self.label, frames, figure)


_reports: Any = None  # the worker process's queue to its parent
_stop: Any = None  # and the event by which the parent asks it to stop


def _start_worker(reports: Any, stop: Any) -> None:
    """Leave signals to the parent, and leave with it."""
    global _reports, _stop
    _reports, _stop = reports, stop
    follow_parent()
    torch.set_num_threads(1)


def follow_parent() -> None:
    """For a worker process: leave signals to the parent, and leave with it."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()


def _leave_with(parent: int) -> None:
    """A parent that was killed cannot tell: notice that this process was handed to another."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _call(label: str, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    return function(*args, Channel(label, _stop.is_set, lambda *what: _reports.put(what)))


@dataclass
class Pool:
    """Runs `function(*args, channel)` jobs on `workers` processes; a context manager.

    Args:
        stop: true once the user asked to stop; running jobs are then told, waiting ones dropped.
        report: called in this process with (label, frames, figure).
    """

    workers: int
    stop: Callable[[], bool]
    report: Report
    waiting: deque[tuple[str, Callable[..., Any], tuple[Any, ...]]] = field(default_factory=deque)

    def __enter__(self) -> Pool:
        if self.workers > 1:
            context = multiprocessing.get_context("spawn")
            self.reports, self.event = context.Queue(), context.Event()
            self.executor = ProcessPoolExecutor(self.workers, context, _start_worker, (self.reports, self.event))
        return self

    def __exit__(self, *_: object) -> None:
        if self.workers > 1:
            self.event.set()
            self.executor.shutdown(wait=True, cancel_futures=True)
            self._drain()

    def submit(self, label: str, function: Callable[..., Any], *args: Any) -> None:
        """Queue a job; everything in it must pickle. `function` takes the job's channel last."""
        self.waiting.append((label, function, args))

    def results(self) -> Iterator[tuple[str, Any]]:
        """Yield (label, result) as jobs finish, until none is left or a stop was asked for.

        Raises BadInput when a worker was killed from outside; other errors of a job pass through.
        """
        return self._parallel() if self.workers > 1 else self._inline()

    def _inline(self) -> Iterator[tuple[str, Any]]:
        while self.waiting and not self.stop():
            label, function, args = self.waiting.popleft()
            yield label, function(*args, Channel(label, self.stop, self.report))

    def _parallel(self) -> Iterator[tuple[str, Any]]:
        running: dict[Future[Any], str] = {}
        while running or (self.waiting and not self.stop()):
            while self.waiting and len(running) < self.workers and not self.stop():
                label, function, args = self.waiting.popleft()
                running[self.executor.submit(_call, label, function, args)] = label
            done, _ = wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            self._drain()
            if self.stop():
                self.event.set()
            for future in done:
                label = running.pop(future)
                try:
                    yield label, future.result()
                except BrokenProcessPool:
                    raise BadInput(
                        f"a worker process was killed while working on {label} (out of memory?); "
                        "progress is saved: run the same command again, perhaps with fewer --workers"
                    ) from None

    def _drain(self) -> None:
        with suppress(queue.Empty):
            while True:
                self.report(*self.reports.get_nowait())
