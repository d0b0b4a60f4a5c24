"""Jobs in other processes: results, reports, stops and sudden deaths."""

from __future__ import annotations

import os
import signal
import time

import pytest

from stages.runtime.errors import BadInput
from stages.runtime.workers import Channel, Pool, usable_cores


def double(number: int, channel: Channel) -> int:
    channel.report(number, number * 1.0)
    return 2 * number


def wait_for_stop(channel: Channel) -> str:
    channel.report(1)
    while not channel.stopped():
        time.sleep(0.02)
    return "saved"


def refuse(channel: Channel) -> None:
    raise BadInput("no such thing")


def die(channel: Channel) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_reports_and_returns_and_may_lead_to_more(workers: int) -> None:
    reports: list[tuple[str, int, float | None]] = []
    found: dict[str, int] = {}
    with Pool(workers, lambda: False, lambda *what: reports.append(what)) as pool:
        for number in range(3):
            pool.submit(f"job {number}", double, number)
        for label, result in pool.results():
            found[label] = result
            if label == "job 2":
                pool.submit("more", double, 10)
    assert found == {"job 0": 0, "job 1": 2, "job 2": 4, "more": 20}
    assert sorted(reports) == [("job 0", 0, 0.0), ("job 1", 1, 1.0), ("job 2", 2, 2.0), ("more", 10, 10.0)]


def test_a_stop_reaches_running_jobs_and_drops_waiting_ones() -> None:
    started: list[str] = []
    with Pool(2, lambda: bool(started), lambda label, *_: started.append(label)) as pool:
        for number in range(4):
            pool.submit(f"job {number}", wait_for_stop)
        results = dict(pool.results())
    assert 1 <= len(results) <= 2 and set(results.values()) == {"saved"}


@pytest.mark.parametrize(("job", "message"), [(refuse, "no such thing"), (die, "worker process was killed")])
def test_a_failing_job_ends_the_pool_with_a_message(job: object, message: str) -> None:
    with pytest.raises(BadInput, match=message), Pool(2, lambda: False, lambda *_: None) as pool:
        pool.submit("a", job)  # type: ignore[arg-type]
        list(pool.results())


def test_only_cores_that_may_be_used_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container or taskset that allows three of 64 gets three workers; a system that cannot tell, all of them."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 5}, raising=False)
    assert usable_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == 64
