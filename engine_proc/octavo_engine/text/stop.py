"""Stop strings found while the text streams: an Aho-Corasick automaton (Aho, Corasick 1975), one step a character.

What could still become a stop string is a prefix of one, and the automaton's state is the longest such suffix of
the text; so its depth is how much must be held back, and no more is.
"""

from __future__ import annotations

from functools import lru_cache

__all__ = ["StopMatcher", "compile_stops"]


class _Automaton:
    """states: `goto[s]` maps a character to the next state, `fail[s]` is the longest proper suffix that is a state,
    `out[s]` the longest stop string that ends here, `hold[s]` the longest suffix that may still grow into one."""

    __slots__ = ("fail", "first", "goto", "hold", "out")

    def __init__(self, stops: tuple[str, ...]) -> None:
        goto: list[dict[str, int]] = [{}]
        out: list[str | None] = [None]
        depth = [0]
        for stop in stops:
            if not stop:
                raise ValueError("a stop string is empty")
            state = 0
            for char in stop:
                if char not in goto[state]:
                    goto[state][char] = len(goto)
                    goto.append({})
                    out.append(None)
                    depth.append(depth[state] + 1)
                state = goto[state][char]
            out[state] = stop
        fail = [0] * len(goto)
        hold = [0] * len(goto)
        queue = list(goto[0].values())
        for state in queue:  # breadth first: a state's fail link is shallower, so it is final already
            if out[state] is None:
                out[state] = out[fail[state]]
            hold[state] = depth[state] if goto[state] else hold[fail[state]]
            for char, child in goto[state].items():
                queue.append(child)
                back = fail[state]
                while back and char not in goto[back]:
                    back = fail[back]
                fail[child] = goto[back].get(char, 0)
        self.goto, self.fail, self.out, self.hold = goto, fail, out, hold
        self.first = frozenset(goto[0])


# Requests of one application mostly carry the same stop strings.
compile_stops = lru_cache(maxsize=256)(_Automaton)


class StopMatcher:
    """Finds the stop string whose last character comes first; where several end there, the longest.

    That choice depends on the text alone, not on how tokens cut it. include: keep the stop string in the text.
    """

    __slots__ = ("_automaton", "_held", "_include", "_state")

    def __init__(self, stops: tuple[str, ...], include: bool = False) -> None:
        self._automaton = compile_stops(stops)
        self._include = include
        self._state = 0
        self._held = ""

    def feed(self, text: str, match: bool = True) -> tuple[str, str | None]:
        """(text that can go out, the stop string found or None). With match False, stop strings that end in `text`
        don't count; one that only begins there still can later. Cost O(len(text)), amortised."""
        automaton, state = self._automaton, self._state
        if not state and automaton.first.isdisjoint(text):
            return text, None
        goto, fail, out = automaton.goto, automaton.fail, automaton.out
        buffer = self._held + text
        end = len(self._held)
        for char in text:
            while state and char not in goto[state]:
                state = fail[state]
            state = goto[state].get(char, 0)
            end += 1
            stop = out[state]
            if stop is not None and match:
                self._state, self._held = 0, ""
                return buffer[: end if self._include else end - len(stop)], stop
        self._state = state
        keep = 0 if self._include else automaton.hold[state]
        if not keep:
            self._held = ""
            return buffer, None
        self._held = buffer[-keep:]
        return buffer[:-keep], None

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held, self._state = self._held, "", 0
        return held
