"""Block store: contents survive, memory is given back, the budget holds."""

import numpy as np
import pytest

from apexrl.replay.block_store import BlockStore, BlockStoreFull

MIB = 1 << 20


def test_blocks_come_back_and_handles_are_checked() -> None:
    store = BlockStore(MIB)
    first = store.put((b"abc", b"", b"x" * 1000))
    second = store.put((b"def",))
    assert store.get(first) == (b"abc", b"", b"x" * 1000)
    store.free(first)
    assert store.get(second) == (b"def",)
    with pytest.raises(KeyError, match="no record"):
        store.get(first)
    with pytest.raises(KeyError, match="no record"):
        store.free(first)


@pytest.mark.parametrize("scattered", [False, True])
def test_many_records_go_where_they_would_go_one_by_one(scattered: bool) -> None:
    rng = np.random.default_rng(7)
    one_by_one, at_once = (BlockStore(MIB, scattered=scattered) for _ in range(2))
    held: list[tuple[int, int]] = []
    for _ in range(40):
        records = [(rng.bytes(int(rng.integers(5000))), rng.bytes(3)) for _ in range(int(rng.integers(1, 30)))]
        singly = []
        for record in records:
            try:
                singly.append(one_by_one.put(record))
            except BlockStoreFull:
                break
        columns = [list(column) for column in zip(*records, strict=True)]
        sizes = np.array([[len(block) for block in column] for column in columns])
        together = at_once.put_many(sizes, columns).tolist()
        assert together == singly
        for handle, record in zip(together, records, strict=False):
            assert one_by_one.get(handle) == at_once.get(handle) == record
        assert (one_by_one.live_bytes, one_by_one.slab_bytes) == (at_once.live_bytes, at_once.slab_bytes)
        held += [(handle, len(record[0])) for handle, record in zip(together, records, strict=False)]
        rng.shuffle(held)
        gone = len(held) // 2 if len(together) == len(records) else len(held)
        for handle, _ in held[:gone]:
            one_by_one.free(handle)
            at_once.free(handle)
        del held[:gone]
        assert one_by_one.compact() == at_once.compact()


def test_no_record_at_all_is_put() -> None:
    assert BlockStore(MIB).put_many(np.empty((2, 0), np.int64), [[], []]).size == 0


def test_budget_bounds_slabs_and_a_full_store_says_so() -> None:
    store = BlockStore(MIB)
    block = bytes(10_000)
    handles = []
    while store.fits(BlockStore.record_bytes(1, len(block))):
        handles.append(store.put((block,)))
        assert store.slab_bytes <= MIB
    with pytest.raises(BlockStoreFull, match="does not fit"):
        store.put((block,))
    assert store.slab_bytes == MIB
    for handle in handles[:7]:
        store.free(handle)
    # Slabs hold six records each; the first is empty now.
    assert store.fits(BlockStore.record_bytes(1, len(block)))
    store.put((block,))
    assert store.slab_bytes <= MIB


def test_everything_freed_leaves_one_spare_slab() -> None:
    store = BlockStore(4 * MIB)
    handles = [store.put((bytes(5000),)) for _ in range(600)]
    assert store.slab_bytes > 2 * MIB
    for handle in handles:
        store.free(handle)
    assert store.live_bytes == 0
    assert store.slab_bytes == store.slab_size


def test_compaction_keeps_contents_and_frees_memory() -> None:
    rng = np.random.default_rng(0)
    store = BlockStore(4 * MIB)
    blocks = {}
    for _ in range(500):
        block = rng.bytes(int(rng.integers(1, 12_000)))
        blocks[store.put((block, b"tail"))] = block
    for handle in rng.permutation(list(blocks))[:400].tolist():
        store.free(handle)
        del blocks[handle]
    before = store.slab_bytes
    turns = 0
    while store.compact():
        turns += 1
        assert store.slab_bytes <= before
    assert turns > 0
    # Half of the full slabs' bytes may be dead; the active and the spare slab come on top.
    assert store.slab_bytes <= 2 * store.live_bytes + 2 * store.slab_size
    assert {handle: store.get(handle) for handle in blocks} == {h: (b, b"tail") for h, b in blocks.items()}
    for handle in blocks:
        store.free(handle)
    assert store.live_bytes == 0


def test_first_in_first_out_use_is_never_compacted() -> None:
    store = BlockStore(4 * MIB)
    handles: list[int] = []
    for _ in range(2000):
        handles.append(store.put((bytes(4000),)))
        if len(handles) > 300:
            store.free(handles.pop(0))
        assert not store.compact()


def test_a_budget_below_two_of_the_largest_records_is_refused() -> None:
    with pytest.raises(ValueError, match="budget_bytes is 1048576, must be at least"):
        BlockStore(MIB, largest_record_bytes=600_000)
