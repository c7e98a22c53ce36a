"""What scheduling costs: microseconds a sequence and step, of schedule() and commit() together, in pure decode.

    python -m tests.bench.scheduling [sequences ...]

A host that must carry S sequences at R steps/s has 1e6 / (S * R) us a sequence and step for all it does.
"""

from __future__ import annotations

import gc
import sys
import time

from octavo.options import SamplingParams
from octavo_engine.scheduling.scheduler import Scheduler, SchedulerConfig
from octavo_engine.scheduling.sequence import Request

_PROMPT, _OUTPUT = 128, 400


def measure(num_seqs: int, n: int = 1) -> tuple[float, float, float]:
    """(schedule, commit, worst whole step) in us a sequence and step: the first two as medians over the steps."""
    scheduler = Scheduler(
        SchedulerConfig(
            num_pages=num_seqs * (_PROMPT + _OUTPUT) // 16 + num_seqs,
            page_size=16,
            max_num_seqs=num_seqs,
            max_num_batched_tokens=max(num_seqs, num_seqs * _PROMPT),
            max_model_len=4096,
        )
    )
    params = SamplingParams(max_tokens=_OUTPUT, n=n)
    for key in range(num_seqs // n):
        prompt = [key * _PROMPT + i for i in range(_PROMPT)]
        scheduler.add(Request(key, prompt, params, frozenset([0]), seed=key, arrival=0.0))
    schedules, commits, steps = [], [], []
    clock = time.perf_counter
    while scheduler.has_work:
        begin = clock()
        plan = scheduler.schedule()
        middle = clock()
        assert plan is not None
        tokens = [1 + plan.step] * sum(len(seq.samplers) for seq in plan.seqs)
        resume = clock()
        scheduler.commit(plan, tokens)
        end = clock()
        if len(plan.seqs) == num_seqs and not plan.starts:
            schedules.append(middle - begin)
            commits.append(end - resume)
            steps.append(middle - begin + end - resume)
    scheduler.check()
    scale = 1e6 / num_seqs
    return (
        sorted(schedules)[len(schedules) // 2] * scale,
        sorted(commits)[len(commits) // 2] * scale,
        max(steps) * scale,
    )


def main() -> None:
    sizes = [int(arg) for arg in sys.argv[1:]] or [1, 8, 64, 256]
    print("sequences   n   schedule   commit      sum   worst step   (us a sequence and step)")
    for size in sizes:
        for n in (1, 4):
            if n > size:
                continue
            gc.collect()
            schedule, commit, worst = min(measure(size, n) for _ in range(3))
            total = schedule + commit
            print(f"{size:9d} {n:3d} {schedule:10.3f} {commit:8.3f} {total:8.3f} {worst:12.3f}")


if __name__ == "__main__":
    main()
