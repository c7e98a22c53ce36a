"""What the whole suite shares. `make test` runs it in several processes (pytest-xdist), then what is marked alone."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# How long an example takes is the machine's affair, which may be busy.
settings.register_profile("octavo", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("octavo")

# Each of the processes keeps to its share of the cores, from before anything counts them and starts as many threads, in
# the engines it spawns too: threads that wait for each other on one core take several times as long.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    _cores, _count = sorted(os.sched_getaffinity(0)), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.sched_setaffinity(0, _cores[int(worker.removeprefix("gw")) % len(_cores) :: _count])
