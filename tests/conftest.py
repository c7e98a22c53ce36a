"""What the whole suite shares. `make test` runs it in several processes (pytest-xdist), then what is marked alone."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes is the machine's affair, which may be busy.
settings.register_profile("octavo", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("octavo")


def pytest_configure(config: pytest.Config) -> None:
    """Each of the processes keeps to its share of the cores. What counts cores then starts as many threads, in the
    engines it spawns too: threads that wait for each other on one core take several times as long."""
    worker = getattr(config, "workerinput", None)
    if worker is not None:
        index, count = int(worker["workerid"].removeprefix("gw")), worker["workercount"]
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[index % len(cores) :: count])
