"""Hands plans to the runner and gives back what they made: at once, or one step later where a device runs by itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from octavo_engine.execution.errors import DeviceLost
from octavo_engine.execution.runner import StepResult
from octavo_engine.scheduling.plan import Plan, SeqStep

if TYPE_CHECKING:
    from octavo_engine.execution.runner import Runner
    from octavo_engine.scheduling.scheduler import Scheduler
    from octavo_engine.scheduling.sequence import Sequence

__all__ = ["Steps"]

log = logging.getLogger("octavo.engine")


class Steps:
    """`fail(sequence, error)` ends a request that a step can't be run for; it may not touch other plans.

    Where the runner is asynchronous, a plan is submitted before the one ahead of it is collected.
    """

    def __init__(self, scheduler: Scheduler, runner: Runner, fail: Callable[[Sequence, Exception], None]) -> None:
        self._scheduler, self._runner, self._fail = scheduler, _Timed(runner), fail
        self._ahead: tuple[Plan, Any] | None = None
        self._began = 0.0  # when the step that is due was submitted, or the one before it was done

    @property
    def in_flight(self) -> bool:
        """A plan was submitted and not yet given back."""
        return self._ahead is not None

    def stats(self) -> dict[str, float]:
        """model_seconds: spent in the runner since the start, sampling included; model_steps: plans it was given."""
        return {"model_seconds": self._runner.seconds, "model_steps": float(self._runner.steps)}

    def advance(self, plan: Plan | None) -> Iterator[tuple[Plan, StepResult]]:
        """Submit a plan, and give what is due, in order: commit each before the next one is asked for.

        Raises DeviceLost. A step that fails otherwise is run again, one sequence at a time, to find whose fault it is.
        """
        if not self._runner.asynchronous:
            if plan is not None:
                self._began = time.perf_counter()
                done = self._run(plan)
                self._measure(plan)
                yield plan, done
            return
        before, self._ahead = self._ahead, None
        if before is None:
            self._began = time.perf_counter()
        handle = None if plan is None else self._submit(plan)
        if before is not None:
            result = self._collect(*before)
            if result is None:
                if handle is not None:
                    self._runner.discard(handle)  # what it read of the step before means nothing
                self._scheduler.resolve(before[0])  # by now the device has drawn beyond it
                yield before[0], self._run_singly(before[0])
                if plan is not None:
                    self._scheduler.resolve(plan)
                    yield plan, self._run(plan)
                return
            self._measure(before[0])
            yield before[0], result
        if plan is not None and handle is not None:
            self._ahead = plan, handle
        elif plan is not None:
            self._scheduler.resolve(plan)
            yield plan, self._run_singly(plan)

    def _measure(self, plan: Plan) -> None:
        now = time.perf_counter()
        self._scheduler.measured(plan, now - self._began)
        self._began = now

    def _submit(self, plan: Plan) -> Any | None:
        try:
            return self._runner.submit(plan)
        except DeviceLost:
            raise
        except Exception:
            self._tell(plan)
            return None

    def _collect(self, plan: Plan, handle: Any) -> StepResult | None:
        try:
            return self._runner.collect(handle)
        except DeviceLost:
            raise
        except Exception:
            self._tell(plan)
            return None

    def _run(self, plan: Plan) -> StepResult:
        """All of it, now."""
        try:
            return self._runner.collect(self._runner.submit(plan))
        except DeviceLost:
            raise
        except Exception:
            self._tell(plan)
            return self._run_singly(plan)

    @staticmethod
    def _tell(plan: Plan) -> None:
        log.exception("step %d failed; running its %d sequences one by one", plan.step, len(plan.seqs))

    def _run_singly(self, plan: Plan) -> StepResult:
        """Find whose fault a failed step was: that request fails, its neighbours' tokens are unaffected (law 6).

        Running a plan again is harmless: the same keys and values are written to the same places.
        """
        merged = StepResult([], [], {})
        ends, starts = plan.ends, {start.slot: start for start in plan.starts}
        running = {slot for seq in plan.seqs for slot in (seq.slot, *seq.samplers)}
        others = [start for start in plan.starts if start.slot not in running]  # beams that wait for the first to draw
        for seq in plan.seqs:
            result = StepResult([0] * seq.num_drawn, [None] * seq.num_drawn, {})
            if self._wanted(seq):
                own = [starts[slot] for slot in dict.fromkeys([seq.slot, *seq.samplers]) if slot in starts]
                single = Plan(plan.step, ends, others + own, plan.copies, [seq])  # copied once: the step is the same
                ends, others = [], []
                try:
                    result = self._runner.collect(self._runner.submit(single))
                except DeviceLost:
                    raise
                except Exception as error:
                    log.exception("a request failed in the model")
                    self._fail(self._scheduler.sequence_at(seq.slot), error)
            merged.tokens.extend(result.tokens)
            merged.logprobs.extend(result.logprobs)
            merged.prompt_logprobs.update(result.prompt_logprobs)
            merged.vectors.update(result.vectors)
            merged.broken.update(result.broken)
        return merged

    def _wanted(self, seq: SeqStep) -> bool:
        """A sequence that this is for lives: none may, where an earlier step failed."""
        slots = seq.samplers or [seq.slot]
        return any(self._scheduler.sequence_at(slot).finish_reason is None for slot in slots)


class _Timed:
    """A runner, and how long it has had the loop."""

    def __init__(self, runner: Runner) -> None:
        self.seconds, self.steps = 0.0, 0
        self.asynchronous = runner.asynchronous
        self._runner = runner

    def discard(self, handle: Any) -> None:
        self._runner.discard(handle)

    def submit(self, plan: Plan) -> Any:
        self.steps += 1
        return self._timed(self._runner.submit, plan)

    def collect(self, handle: Any) -> StepResult:
        result: StepResult = self._timed(self._runner.collect, handle)
        return result

    def _timed(self, work: Callable[[Any], Any], given: Any) -> Any:
        begun = time.perf_counter()
        try:
            return work(given)
        finally:
            self.seconds += time.perf_counter() - begun
