"""Full pages found again by their tokens.

A page's keys and values depend on its tokens and all tokens before them, so a page is known by a chained hash: of its
own tokens and of its parent, the page before it; the first page's parent is the request's cache_salt. On a hit the
tokens and the parent are compared, so that two chains with one hash never share a page.

Only full pages are stored, and only after the step that computed them was committed. A sequence that holds a page also
holds the page's parent, and gives them back children first; so a parent is never evicted before its children.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from octavo_engine.scheduling.block_pool import BlockPool

__all__ = ["CachedPage", "Parent", "PrefixCache"]


class CachedPage(msgspec.Struct, eq=False, gc=False):
    """A full page whose content can be found. parent: the page before, or the cache_salt before the first page; tokens:
    its token ids as int32 bytes."""

    key: int
    parent: CachedPage | bytes
    tokens: bytes
    page: int


Parent = CachedPage | bytes


def _hash(parent: int | bytes, tokens: bytes) -> int:
    """Python's hash of bytes is SipHash under a key drawn at start: collisions can't be prepared from outside."""
    return hash((parent, tokens))


class PrefixCache:
    """`hash_page(parent, tokens)` gets the parent's hash, or the cache_salt for a first page."""

    def __init__(self, pool: BlockPool, hash_page: Callable[[int | bytes, bytes], int] = _hash) -> None:
        self._pool = pool
        self._hash = hash_page
        self._by_key: dict[int, CachedPage] = {}
        self._by_page: dict[int, CachedPage] = {}
        pool.on_evict = self._forget

    def __len__(self) -> int:
        return len(self._by_key)

    def find(self, parent: Parent, tokens: bytes) -> CachedPage | None:
        """The page that holds `tokens` after `parent`. It is not yet held: share it before anything is allocated."""
        found = self._by_key.get(self._key(parent, tokens))
        return found if found is not None and self._same(found, parent, tokens) else None

    def store(self, parent: Parent, tokens: bytes, page: int) -> CachedPage | None:
        """Make a held, full, computed page findable.

        Returns the entry of that content, which is another page's when the same was computed twice: the caller should
        then hold that one in place of its own. None when another content has the same hash: the page is not stored.
        """
        key = self._key(parent, tokens)
        found = self._by_key.get(key)
        if found is None:
            found = self._by_key[key] = self._by_page[page] = CachedPage(key, parent, tokens, page)
            self._pool.make_findable(page)
            return found
        return found if self._same(found, parent, tokens) else None

    def _key(self, parent: Parent, tokens: bytes) -> int:
        return self._hash(parent if isinstance(parent, bytes) else parent.key, tokens)

    @staticmethod
    def _same(found: CachedPage, parent: Parent, tokens: bytes) -> bool:
        same_parent = found.parent == parent if isinstance(parent, bytes) else found.parent is parent
        return same_parent and found.tokens == tokens

    def _forget(self, page: int) -> None:
        del self._by_key[self._by_page.pop(page).key]

    def check(self) -> None:
        """Prove that both maps and the pool agree, and that no page outlived its parent. Raises AssertionError."""
        assert len(self._by_key) == len(self._by_page), "the maps differ in size"
        for page, entry in self._by_page.items():
            assert entry.page == page, f"entry of page {entry.page} stands at page {page}"
            assert self._by_key.get(entry.key) is entry, f"page {page} is not found by its key"
            assert self._pool.is_findable(page), f"page {page} is stored, but the pool would free it"
            if isinstance(entry.parent, CachedPage):
                assert self._by_page.get(entry.parent.page) is entry.parent, f"page {page} outlived its parent"
        order = {page: place for place, page in enumerate(self._pool.eviction_order())}
        for page, place in order.items():
            parent = self._by_page[page].parent
            if isinstance(parent, CachedPage) and parent.page in order:
                assert place < order[parent.page], f"page {parent.page} would be evicted before its child {page}"
        findable = sum(map(self._pool.is_findable, range(self._pool.num_pages)))
        assert findable == len(self._by_page), f"{findable} pages findable, {len(self._by_page)} stored"
