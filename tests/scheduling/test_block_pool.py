from __future__ import annotations

import pytest

from octavo_engine.scheduling.block_pool import BlockPool


def test_pages_come_back() -> None:
    pool = BlockPool(3)
    pages = [pool.allocate() for _ in range(3)]
    assert sorted(pages) == [0, 1, 2]
    pool.check([pages])
    with pytest.raises(IndexError, match="all 3 pages"):
        pool.allocate()
    for page in pages:
        pool.release(page)
    pool.check([])
    assert pool.num_available == pool.num_pages == 3


def test_a_shared_page_is_freed_by_its_last_owner() -> None:
    pool = BlockPool(2)
    page = pool.allocate()
    pool.share(page)
    pool.check([[page], [page]])
    pool.release(page)
    assert pool.num_held == 1
    pool.release(page)
    assert pool.num_held == 0
    with pytest.raises(ValueError, match="no reference"):
        pool.release(page)
    pool.check([])


def test_free_pages_go_before_cached_ones_and_those_in_lru_order() -> None:
    evicted: list[int] = []
    pool = BlockPool(4, evicted.append)
    a, b, c, d = (pool.allocate() for _ in range(4))
    for page in (a, b, c):
        pool.make_findable(page)
    for page in (b, a, d, c):
        pool.release(page)
    pool.share(b)  # used again, and given back: now the youngest
    pool.release(b)
    assert pool.num_available == 4
    assert [pool.allocate() for _ in range(4)] == [d, a, c, b]
    assert evicted == [a, c, b]
    pool.check([[a, b, c, d]])


@pytest.mark.parametrize(
    "harm",
    [
        lambda pool, page: pool.refs.__setitem__(page, 2),
        lambda pool, page: pool._free.append(page),
        lambda pool, page: pool._free.append(pool._free[0]),
        lambda pool, page: pool._free.pop(),
        lambda pool, page: pool.make_findable(pool._free[0]),
        lambda pool, page: pool._evictable.__setitem__(pool._free[0], None),
    ],
)
def test_check_finds_harm(harm) -> None:  # type: ignore[no-untyped-def]
    pool = BlockPool(4)
    page = pool.allocate()
    pool.check([[page]])
    harm(pool, page)
    with pytest.raises(AssertionError):
        pool.check([[page]])
