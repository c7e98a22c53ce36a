"""Compiles grammars beside the step loop, once for all requests that ask for the same, and keeps the last few."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakValueDictionary

from octavo.options import EngineOptions, Structured
from octavo_engine.structured.background import Background
from octavo_engine.structured.compiler import Compiler, InvalidGrammar, size_of
from octavo_engine.structured.matcher import Matcher
from octavo_engine.text import Text, TextError

__all__ = ["Grammars"]

log = logging.getLogger("octavo.engine")

# Long texts (bytes) have a thread of their own, so that they don't hold up short ones. Both yield to the kernels'
# threads, as a step waits for the slowest of those; the thread of long ones takes only what nobody else wants (see
# background.py, and tests/bench/grammar_latency.py for what it costs). The other is not held so low: in the moments in
# which it has the interpreter's lock, the loop waits for it.
_LONG = 16 << 10
_NICE = 15
_PATIENCE = 0.25  # of EngineOptions.grammar_timeout
# Of max_grammar_bytes, the text of all that is kept: a compiled schema takes about forty times its text.
_KEPT = 4


_Jobs = queue.SimpleQueue[Structured | None]


class Grammars:
    """Called from the engine thread; `wake` is called from others when something has become ready.

    begin: make the compiler's table of tokens now, in a thread, rather than for the first request.
    """

    def __init__(self, text: Text, options: EngineOptions, wake: Callable[[], None], *, begin: bool = False) -> None:
        self._text, self._wake = text, wake
        self._max_bytes, self._timeout = options.max_grammar_bytes, options.grammar_timeout
        self._cache_size = options.grammar_cache_size
        self._compiled: WeakValueDictionary[Structured, Matcher] = WeakValueDictionary()
        self._kept: OrderedDict[Structured, Matcher] = OrderedDict()  # the last used is the last
        self._kept_bytes = 0
        self._waiting: dict[Structured, dict[Hashable, Any]] = {}
        self._asked: dict[Hashable, Structured] = {}
        self._short: _Jobs = queue.SimpleQueue()
        self._long: _Jobs = queue.SimpleQueue()
        self._done: deque[tuple[Structured, Matcher | Exception | None]] = deque()
        self._compiler: Compiler | None = None
        self._compiler_lock = threading.Lock()
        self._background = Background(_PATIENCE * options.grammar_timeout)
        self._workers: list[threading.Thread] = []
        self.num_compiled = 0
        if begin and text.has_tokenizer and text.eos_token_ids:
            threading.Thread(target=self._begin, name="octavo-grammar-tokens", daemon=True).start()

    @property
    def num_pending(self) -> int:
        """Requests that wait for their grammar."""
        return len(self._asked)

    def find(self, key: Hashable, spec: Structured, request: Any) -> Matcher | None:
        """A matcher at the grammar's beginning, to be held for as long as `matcher` may be asked for a copy; or None:
        `ready` will tell of the request. Raises InvalidGrammar.
        """
        found = self._compiled.get(spec)
        if found is not None:
            self._keep(spec, found)
            return found
        size = size_of(spec)
        if size > self._max_bytes:
            limit = f"EngineOptions.max_grammar_bytes={self._max_bytes}"
            raise InvalidGrammar(f"structured: {size} bytes of {type(spec).__name__}; {limit}")
        waiting = self._waiting.setdefault(spec, {})
        first = not waiting
        waiting[key] = request  # before the job is put: the worker may be at it at once, and looks who waits
        self._asked[key] = spec
        if first:
            self._start_workers()
            (self._long if size > _LONG else self._short).put(spec)
        return None

    def is_pending(self, key: Hashable) -> bool:
        return key in self._asked

    def cancel(self, key: Hashable) -> None:
        """The request is not waited for any more; what nobody waits for is not begun. Idempotent."""
        spec = self._asked.pop(key, None)
        if spec is not None:
            self._waiting[spec].pop(key)

    def ready(self) -> list[tuple[Any, Matcher | Exception]]:
        """(request, what `find` gives or the error) of those that wait no longer, since the last call."""
        self._background.give_way()
        told: list[tuple[Any, Matcher | Exception]] = []
        while self._done:
            spec, result = self._done.popleft()
            if result is None and self._waiting.get(spec):
                continue  # somebody asked again since, and there is another job for it
            waiting = self._waiting.pop(spec, {})
            if isinstance(result, Matcher):
                result = self._compiled.setdefault(spec, result)  # what a live request holds stays the one
                self._keep(spec, result)
            for key, request in waiting.items():
                assert result is not None
                del self._asked[key]
                told.append((request, result))
        return told

    def matcher(self, spec: Structured) -> Matcher:
        """A matcher at the beginning, for a sequence whose request holds the grammar. Raises KeyError for others."""
        return self._compiled[spec].copy()

    def close(self) -> None:
        self._short.put(None)
        self._long.put(None)

    def _keep(self, spec: Structured, compiled: Matcher) -> None:
        if spec not in self._kept:
            self._kept_bytes += size_of(spec)
        self._kept[spec] = compiled
        self._kept.move_to_end(spec)
        while len(self._kept) > self._cache_size or self._kept_bytes > _KEPT * self._max_bytes:
            oldest, _ = self._kept.popitem(last=False)
            self._kept_bytes -= size_of(oldest)

    # ---- other threads -----------------------------------------------------------------------------------------

    def _start_workers(self) -> None:
        if not self._workers:
            lanes = (("short", self._short), ("long", self._long))
            self._workers = [
                threading.Thread(target=self._work, args=[jobs], name=f"octavo-grammars-{name}", daemon=True)
                for name, jobs in lanes
            ]
            for worker in self._workers:
                worker.start()

    def _work(self, jobs: _Jobs) -> None:
        ready = self._begin()
        working: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
        if jobs is self._long:
            working = self._background.working
            self._background.enter()
        else:
            thread = threading.get_native_id()
            with contextlib.suppress(OSError):  # of this thread alone, where the system knows that
                os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + _NICE))
        while (spec := jobs.get()) is not None:
            with working():
                self._done.append((spec, self._compile(spec, ready)))
            self._wake()

    def _compile(self, spec: Structured, ready: Compiler | Exception) -> Matcher | Exception | None:
        """None where nobody waits for it any more."""
        if not self._waiting.get(spec):
            return None
        if isinstance(ready, Exception):
            return ready
        try:
            matcher = ready.compile(spec, self._timeout)
        except InvalidGrammar as error:
            return error
        except Exception as error:  # whatever it is ends these requests, not the thread
            log.exception("a grammar could not be compiled")
            return InvalidGrammar(f"structured: {type(error).__name__}: {error}")
        self.num_compiled += 1
        return matcher

    def _begin(self) -> Compiler | Exception:
        with self._compiler_lock:
            if self._compiler is None:
                try:
                    self._compiler = Compiler(self._text)
                except Exception as error:  # of the tokenizer's, of the library's: told to each that asks
                    if not isinstance(error, TextError):
                        log.exception("structured output is not to be had")
                    return InvalidGrammar(f"structured: {error}")
            return self._compiler
