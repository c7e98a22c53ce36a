"""The page tables of running sequences: how they grow, share, copy on write, are found again and given back.

A sequence's `room` is the position below which the next token can be written without looking at its pages. It is 0
until the first decode, so that after a fork every choice looks, and after `store` exchanged a page, so that the runner
is told; else a multiple of the page size, so that it looks again whenever a page is full, or its regime's limit.
"""

from __future__ import annotations

from collections.abc import Callable

from octavo_engine.scheduling.block_pool import BlockPool
from octavo_engine.scheduling.prefix_cache import CachedPage, Parent, PrefixCache
from octavo_engine.scheduling.sequence import Sequence

__all__ = ["PageTables"]

_LOOK_AGAIN = 16  # steps after which a head that lacks pages is looked up in the prefix cache again


class PageTables:
    """Owns the pool and the prefix cache. Allocating methods raise IndexError when the pool is exhausted."""

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        enable_prefix_caching: bool,
        hash_page: Callable[[int | bytes, bytes], int] | None = None,
    ) -> None:
        self.page_size = page_size
        self.pool = BlockPool(num_pages)
        self.cache = PrefixCache(self.pool, hash_page) if hash_page else PrefixCache(self.pool)
        self.replaced: list[int] = []  # by `store`; each still counts a reference, for the caller to give back
        self._caching = enable_prefix_caching

    def num_pages(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)

    def capacity(self, seq: Sequence) -> int:
        """Positions that `seq` could reach with all pages that are available."""
        return (len(seq.pages) + self.pool.num_available) * self.page_size

    def chunk(self, seq: Sequence, budget: int) -> int:
        """How many tokens of `seq` can be computed in this step."""
        start, request = seq.num_computed, seq.request
        stop = min(seq.num_tokens, start + budget, self.capacity(seq))
        if request.wants_prompt_scored and start < request.prompt_scored:
            stop = min(stop, request.prompt_scored)  # recomputed: those were delivered already
        return max(0, stop - start)

    def find(self, seq: Sequence) -> list[CachedPage]:
        """Entries of its first pages; never all of its tokens, since the last one's logits are needed.

        What has no prompt logprobs yet, though they are wanted, must be computed as well, and all for a mean.
        """
        found: list[CachedPage] = []
        if not self._cached(seq):
            return found
        size, request = self.page_size, seq.request
        limit = request.prompt_scored if request.wants_prompt_scored else seq.num_tokens - 1
        parent: Parent = seq.cache_root
        for start in range(0, limit // size * size, size):
            entry = self.cache.find(parent, seq.token_bytes(start, start + size))
            if entry is None:
                break
            found.append(entry)
            parent = entry
        return found

    def _cached(self, seq: Sequence) -> bool:
        """A mean takes every row anew, and the texts of a corpus would only drive out what others find again."""
        return self._caching and seq.request.pooling != "mean"

    def cost(self, seq: Sequence, found: list[CachedPage]) -> int:
        """Available pages that computing `seq` takes: new ones, and found ones that nobody holds now."""
        refs = self.pool.refs
        return self.num_pages(seq.num_tokens) - sum(refs[entry.page] > 0 for entry in found)

    def find_within(self, seq: Sequence, available: int, step: int) -> list[CachedPage] | None:
        """The same if computing `seq` takes no more than `available` pages; after a failure it is looked up seldom."""
        cost, look_at = seq.cost
        if cost > available and step < look_at:
            return None
        found = self.find(seq)
        cost = self.cost(seq, found)
        if cost <= available:
            return found
        seq.cost = (cost, step + _LOOK_AGAIN)
        return None

    def begin(self, seq: Sequence, found: list[CachedPage]) -> None:
        """Start the table with what `find` found."""
        for entry in found:
            self.pool.share(entry.page)
        seq.pages = [entry.page for entry in found]
        seq.num_computed = len(found) * self.page_size
        if self._cached(seq):
            seq.node = found[-1] if found else seq.cache_root

    def grow(self, seq: Sequence, stop: int) -> None:
        """Pages for all positions below `stop`."""
        for _ in range(self.num_pages(stop) - len(seq.pages)):
            seq.pages.append(self.pool.allocate())

    def share(self, leader: Sequence, follower: Sequence) -> None:
        """`follower` has the leader's tokens, and so its pages. Whoever writes to the last one first gets a copy."""
        for page in leader.pages:
            self.pool.share(page)
        follower.pages = leader.pages.copy()
        leader.room = 0
        follower.num_computed, follower.node = leader.num_computed, leader.node

    def needs_page(self, seq: Sequence) -> bool:
        """The next token can't be written into the last page: it is full, or others hold it too."""
        pages = seq.pages
        return seq.num_computed == len(pages) * self.page_size or self.pool.refs[pages[-1]] > 1

    def add_page(self, seq: Sequence, copies: list[tuple[int, int]]) -> None:
        """Give what needs_page asks for: a new page, or an own copy, noted in `copies`."""
        pages, page = seq.pages, self.pool.allocate()
        if seq.num_computed == len(pages) * self.page_size:
            pages.append(page)
            return
        shared, pages[-1] = pages[-1], page
        copies.append((shared, page))
        self.pool.release(shared)
        seq.sent = min(seq.sent, len(pages) - 1)

    def store(self, seq: Sequence, start: int, stop: int) -> None:
        """Make its full pages of tokens start .. stop - 1 findable; they are computed.

        Where the same content was computed twice, one page is kept and shared. What a step in flight may still read of
        the other one is why it goes to `replaced`.
        """
        size = self.page_size
        for index in range(start // size, stop // size):
            if seq.node is None:
                return
            page = seq.pages[index]
            node = seq.node = self.cache.store(seq.node, seq.token_bytes(index * size, (index + 1) * size), page)
            if node is not None and node.page != page:
                self.pool.share(node.page)
                self.replaced.append(page)
                seq.pages[index] = node.page
                seq.sent = min(seq.sent, index)
                seq.room = 0

    def grow_for_guesses(self, seq: Sequence, stop: int) -> int:
        """Pages for positions below `stop` as far as there are free ones; the position that was reached."""
        self.grow(seq, min(stop, self.capacity(seq)))
        return min(stop, len(seq.pages) * self.page_size)

    def trim(self, seq: Sequence, num_guesses: int = 0) -> None:
        """Give back pages beyond what is computed and so many guesses."""
        keep = self.num_pages(seq.num_computed + num_guesses)
        for page in reversed(seq.pages[keep:]):
            self.pool.release(page)
        del seq.pages[keep:]
        seq.sent, seq.room = min(seq.sent, keep), min(seq.room, keep * self.page_size)

    def release(self, seq: Sequence) -> None:
        """Give all pages back, children before parents (see prefix_cache)."""
        for page in reversed(seq.pages):
            self.pool.release(page)
        seq.pages = []
        seq.num_computed = seq.sent = seq.room = 0
        seq.node = None
