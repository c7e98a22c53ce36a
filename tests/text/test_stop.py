"""Stop strings, against a reference that looks at every prefix of the text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_engine.text import StopMatcher

# Two letters, so that stop strings overlap, nest and nearly match.
strings = st.text("ab", min_size=1, max_size=5)
stop_lists = st.lists(strings, min_size=1, max_size=4).map(tuple)
chunk_lists = st.lists(st.text("abc", max_size=4), max_size=12)


def reference(text: str, stops: tuple[str, ...], include: bool, after: int = 0) -> tuple[str, str | None]:
    """The stop string that ends first (beyond `after` characters), the longest of those that end there."""
    for end in range(after + 1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


def could_become(text: str, stops: tuple[str, ...]) -> int:
    """How many last characters are the beginning of a stop string."""
    sizes = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
    return max(sizes, default=0)


@given(chunk_lists, stop_lists, st.booleans())
def test_streamed_is_the_reference_of_the_whole(chunks: list[str], stops: tuple[str, ...], include: bool) -> None:
    matcher = StopMatcher(stops, include)
    seen = sent = ""
    stop = None
    for chunk in chunks:
        seen += chunk
        out, stop = matcher.feed(chunk)
        sent += out
        if stop is not None:
            break
        held = 0 if include else could_become(seen, stops)
        assert sent == seen[: len(seen) - held]  # never too much, never too little
    if stop is None:
        sent += matcher.flush()
    assert (sent, stop) == reference("".join(chunks), stops, include)


@given(chunk_lists, chunk_lists, stop_lists)
def test_stop_strings_that_end_early_do_not_count(early: list[str], late: list[str], stops: tuple[str, ...]) -> None:
    matcher = StopMatcher(stops)
    before, text = "".join(early), "".join(early + late)
    sent, seen, stop = "", "", None
    for chunk in early:
        out, found = matcher.feed(chunk, match=False)
        assert found is None
        sent += out
        seen += chunk
        assert sent == seen[: len(seen) - could_become(seen, stops)]
    for chunk in late:
        out, stop = matcher.feed(chunk)
        sent += out
        if stop is not None:
            break
    if stop is None:
        sent += matcher.flush()
    expected, which = reference(text, stops, False, after=len(before))
    assert stop == which
    assert sent == expected


def test_the_first_to_end_wins_over_the_first_to_begin() -> None:
    assert StopMatcher(("abcd", "bc")).feed("xabcd") == ("xa", "bc")
    assert StopMatcher(("bc", "abc")).feed("xabc") == ("x", "abc")


def test_any_characters() -> None:
    matcher = StopMatcher(("👨‍👩‍👧", "\n\nUser:"))
    assert matcher.feed("hi 👨‍") == ("hi ", None)
    assert matcher.feed("👩‍👦\n") == ("👨‍👩‍👦", None)
    assert matcher.feed("\nUser") == ("", None)
    assert matcher.feed(": more") == ("", "\n\nUser:")


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopMatcher(("a", ""))
