"""Pages of the KV cache and who holds them: counted references, a free list, and eviction in LRU order.

A page is in exactly one of three states:

    held     refs[page] >= 1 (a page table entry of one or more sequences points at it)
    cached   refs[page] == 0, its content can still be found by the prefix cache; evicted when pages run out
    free     refs[page] == 0, its content means nothing

"Available" pages are free or cached: what the next allocations can take. All operations are O(1).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable

__all__ = ["BlockPool"]


class BlockPool:
    """`num_pages` pages, numbered from 0. `on_evict(page)` is called before a cached page is given out again.

    refs: references a page, indexed by page. Read it freely; change it only through this class.
    """

    def __init__(self, num_pages: int, on_evict: Callable[[int], None] | None = None) -> None:
        self.num_pages = num_pages
        self.refs = [0] * num_pages
        self.on_evict = on_evict
        self._free = list(range(num_pages - 1, -1, -1))
        self._evictable: OrderedDict[int, None] = OrderedDict()
        self._findable = bytearray(num_pages)

    @property
    def num_available(self) -> int:
        """Pages that can be allocated now, cached ones included."""
        return len(self._free) + len(self._evictable)

    @property
    def num_held(self) -> int:
        return self.num_pages - self.num_available

    def allocate(self) -> int:
        """A page with one reference. Free pages go first, then the cached page unused for longest.

        Raises IndexError when num_available is 0: callers look first.
        """
        if self._free:
            page = self._free.pop()
        elif self._evictable:
            page, _ = self._evictable.popitem(last=False)
            self._findable[page] = 0
            if self.on_evict is not None:
                self.on_evict(page)
        else:
            raise IndexError(f"all {self.num_pages} pages of the KV cache are held")
        self.refs[page] = 1
        return page

    def share(self, page: int) -> None:
        """One more reference; also takes a cached page back into use."""
        if self.refs[page] == 0:
            del self._evictable[page]
        self.refs[page] += 1

    def release(self, page: int) -> None:
        """One reference less. The last one makes the page cached or free."""
        refs = self.refs[page] - 1
        if refs < 0:
            raise ValueError(f"page {page} has no reference to give back")
        self.refs[page] = refs
        if refs == 0:
            if self._findable[page]:
                self._evictable[page] = None
            else:
                self._free.append(page)

    def make_findable(self, page: int) -> None:
        """The prefix cache knows this held page: it becomes cached instead of free once nobody holds it."""
        self._findable[page] = 1

    def is_findable(self, page: int) -> bool:
        return bool(self._findable[page])

    def eviction_order(self) -> list[int]:
        """The cached pages, the next to be evicted first."""
        return list(self._evictable)

    def check(self, owners: Iterable[Iterable[int]]) -> None:
        """Prove the invariants, given the page tables of all that hold pages. Raises AssertionError."""
        held: Counter[int] = Counter()
        for pages in owners:
            table = list(pages)
            assert len(set(table)) == len(table), f"a page stands twice in one page table: {table}"
            held.update(table)
        for page, refs in enumerate(self.refs):
            assert refs == held[page], f"page {page} counts {refs} references, {held[page]} tables point at it"
        free = set(self._free)
        assert len(free) == len(self._free), "a page stands twice in the free list"
        assert not free & self._evictable.keys(), "a page is both free and cached"
        assert free | self._evictable.keys() == {page for page, refs in enumerate(self.refs) if refs == 0}, (
            "pages without references and available pages differ"
        )
        for page in self._free:
            assert not self._findable[page], f"free page {page} can still be found"
        for page in self._evictable:
            assert self._findable[page], f"cached page {page} cannot be found"
        assert self.num_held == len(held), f"{self.num_held} pages held, page tables name {len(held)}"
