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
