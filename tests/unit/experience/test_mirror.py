from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch

from apexrl.chunk_batch import ChunkBatch
from apexrl.experience.batch import CPU, BatchBuffer, BatchRing
from apexrl.experience.codec import encode_block
from apexrl.experience.device_mirror import CopyStream, DeviceMirror
from apexrl.experience.mirror import HostMirror, Mirror, Place
from apexrl.experience.records import RecordLayout
from apexrl.types import Array, Chunk, Codec, ColumnSpec, Geometry, Scope, Signature, SignatureError

SIGNATURE = Signature(
    (
        ColumnSpec("row_id", "int64"),
        ColumnSpec("kind", "uint8"),
        ColumnSpec("age", "uint16"),
        ColumnSpec("observation", "uint8", (3, 2), codec=Codec.LZ4),
        ColumnSpec("bytes12", "float32", (3,)),
        ColumnSpec("parameter_version", "uint64", scope=Scope.ITEM),
        ColumnSpec("core_state", "float32", (2,), scope=Scope.ITEM),
    ),
    Geometry(2, 5, 3),
    stack=3,
)


MakeMirror = Callable[[int], Mirror]


@pytest.fixture(params=["host", "device"])
def make_mirror(request: pytest.FixtureRequest) -> MakeMirror:
    """Both mirrors, that of a device in host memory."""
    if request.param == "host":
        return lambda num_slots: HostMirror(SIGNATURE, num_slots)
    return lambda num_slots: DeviceMirror(SIGNATURE, num_slots, CopyStream(CPU))


def chunk(page: int, rows: int = 10, starts: int = 5) -> tuple[int, int, tuple[bytes, ...]]:
    """Row r of page p holds the number 1000 p + r in every column (modulo its type)."""
    blocks = []
    for column in SIGNATURE.columns:
        count = rows if column.scope is Scope.STEP else starts
        numbers = 1000 * page + np.arange(count).reshape(count, *[1] * len(column.shape))
        values: Array = np.broadcast_to(numbers, (count, *column.shape)).astype(column.dtype)
        blocks.append(encode_block(column, values))
    return rows, starts, tuple(blocks)


def put(mirror: Mirror, slot: int, rows: int, starts: int, blocks: tuple[bytes, ...]) -> None:
    """One chunk into one slot."""
    mirror.put(np.array([slot]), batch_of((rows, starts, blocks)))


def batch_of(*chunks: tuple[int, int, tuple[bytes, ...]]) -> ChunkBatch:
    """Chunks as a reply carries them, without items."""
    numbers, priorities = np.zeros(5, np.uint16), np.zeros(5, np.float32)
    return ChunkBatch.of(
        [
            Chunk(rows, starts, numbers[:starts], numbers[:starts], priorities[:starts], blocks)
            for rows, starts, blocks in chunks
        ]
    )


def gather(
    mirror: Mirror,
    slots: list[int],
    start_rows: list[int],
    buffer: BatchBuffer,
    offset: int = 0,
    lengths: list[int] | None = None,
) -> None:
    """Gather windows of length 1 unless told otherwise, without a prefix."""
    longs = np.array(lengths or [1] * len(slots))
    none = np.zeros(len(slots), dtype=np.int64)
    mirror.gather(np.array(slots), np.array(start_rows), longs, none, [Place(buffer, offset, len(slots))])


def test_windows_are_gathered_from_all_columns(make_mirror: MakeMirror) -> None:
    mirror, buffer = make_mirror(4), BatchBuffer(SIGNATURE, 6)
    for slot in range(4):
        put(mirror, slot, *chunk(slot + 1))
    slots = np.array([3, 0, 2, 2], dtype=np.uint32)
    start_rows = np.array([2, 6, 4, 4], dtype=np.uint16)
    lengths, prefixes = np.array([3, 1, 2, 3], np.uint16), np.array([0, 2, 1, 0], np.uint16)
    mirror.gather(slots, start_rows, lengths, prefixes, [Place(buffer, 1, 3), Place(buffer, 4, 1)])
    buffer.weights[1:5] = 0.5
    batch = buffer.as_window_batch()
    expected = (1000 * (slots + 1) + start_rows)[:, None].astype(np.int64) + np.arange(-2, 4)
    for name in ("row_id", "kind", "age"):
        column = batch.columns[name].numpy()
        assert column.shape == (6, 6)
        np.testing.assert_array_equal(column[1:5], expected.astype(column.dtype))
        assert not column[[0, 5]].any()
    np.testing.assert_array_equal(batch.columns["observation"][1:5, :, 2, 1].numpy(), expected.astype(np.uint8))
    np.testing.assert_array_equal(batch.columns["bytes12"][1:5, :, 2].numpy(), expected.astype(np.float32))
    np.testing.assert_array_equal(batch.item_columns["parameter_version"][1:5].numpy(), expected[:, 2] - 2)
    np.testing.assert_array_equal(batch.item_columns["core_state"][1:5, 1].numpy(), (expected[:, 2] - 2))
    assert batch.lengths.tolist() == [0, 3, 1, 2, 3, 0]
    assert batch.prefixes.tolist() == [0, 0, 2, 1, 0, 0]
    assert batch.weights.tolist() == [0, 0.5, 0.5, 0.5, 0.5, 0]
    assert batch.lengths.dtype == batch.prefixes.dtype == torch.int64


def test_what_was_gathered_survives_the_next_page_in_the_slot(make_mirror: MakeMirror) -> None:
    mirror, buffer = make_mirror(1), BatchBuffer(SIGNATURE, 1)
    put(mirror, 0, *chunk(1))
    gather(mirror, [0], [4], buffer)
    put(mirror, 0, *chunk(2))
    assert buffer.as_window_batch().columns["row_id"][0].tolist() == [1002, 1003, 1004, 1005, 1006, 1007]


def test_rows_that_a_short_page_lacks_are_zeros_and_not_those_of_the_page_before(make_mirror: MakeMirror) -> None:
    mirror, buffer = make_mirror(1), BatchBuffer(SIGNATURE, 2)
    put(mirror, 0, *chunk(1))
    put(mirror, 0, *chunk(2, rows=5, starts=2))
    gather(mirror, [0, 0], [2, 3], buffer, lengths=[2, 1])
    batch = buffer.as_window_batch()
    assert batch.columns["row_id"].tolist() == [
        [2000, 2001, 2002, 2003, 2004, 0],
        [2001, 2002, 2003, 2004, 0, 0],
    ]
    with pytest.raises(ValueError, match=r"item 1: length is 2 and prefix 0, must be in \[1, 1\] and \[0, 2\]"):
        gather(mirror, [0, 0], [2, 3], buffer, lengths=[2, 2])


@pytest.mark.parametrize(
    ("slot", "start_row"), [(1, 1), (1, 7), (1, 4000), (2, 2), (3, 2), (-1, 2), (2**31, 2), (1, -1)]
)
def test_items_outside_their_page_are_refused_before_anything_is_read(
    make_mirror: MakeMirror, slot: int, start_row: int
) -> None:
    mirror, buffer = make_mirror(3), BatchBuffer(SIGNATURE, 2)
    put(mirror, 1, *chunk(1))
    with pytest.raises(ValueError, match=f"item 1: slot {slot} of 3 has no start row {start_row} "):
        gather(mirror, [1, slot], [2, start_row], buffer)
    assert not buffer.as_window_batch().columns["row_id"].any()


def test_a_batch_that_is_too_small_is_refused(make_mirror: MakeMirror) -> None:
    mirror, buffer = make_mirror(1), BatchBuffer(SIGNATURE, 2)
    put(mirror, 0, *chunk(1))
    with pytest.raises(ValueError, match="offset is 1, must be in"):
        gather(mirror, [0, 0], [2, 2], buffer, offset=1)
    with pytest.raises(ValueError, match="offset is -1, must be in"):
        gather(mirror, [0], [2], buffer, offset=-1)
    with pytest.raises(ValueError, match="must have one axis of one size"):
        gather(mirror, [0], [2, 2], buffer)
    ones = np.array([1])
    with pytest.raises(ValueError, match="places are of 2 items, must be of 1"):
        mirror.gather(np.array([0]), np.array([2]), ones, ones, [Place(buffer, 0, 1), Place(buffer, 1, 1)])
    other = Signature((ColumnSpec("x", "int64"),), Geometry(0, 1, 1))
    with pytest.raises(ValueError, match="another signature"):
        mirror.gather(np.array([0]), np.array([2]), ones, 0 * ones, [Place(BatchBuffer(other, 1), 0, 1)])


@pytest.mark.parametrize(("length", "prefix"), [(0, 0), (4, 0), (-1, 0), (1, 3), (1, -1)])
def test_windows_longer_than_the_geometry_are_refused(make_mirror: MakeMirror, length: int, prefix: int) -> None:
    mirror, buffer = make_mirror(1), BatchBuffer(SIGNATURE, 1)
    put(mirror, 0, *chunk(1))
    with pytest.raises(ValueError, match=f"item 0: length is {length} and prefix {prefix}, must be in"):
        mirror.gather(np.array([0]), np.array([4]), np.array([length]), np.array([prefix]), [Place(buffer, 0, 1)])


def test_a_host_mirror_writes_to_no_other_memory() -> None:
    mirror, buffer = HostMirror(SIGNATURE, 1), BatchBuffer(SIGNATURE, 1)
    put(mirror, 0, *chunk(1))
    buffer.device = torch.device("cuda")
    with pytest.raises(ValueError, match="not in host memory"):
        gather(mirror, [0], [2], buffer)


def test_a_chunk_that_does_not_decode_leaves_an_empty_slot(make_mirror: MakeMirror) -> None:
    mirror, buffer = make_mirror(2), BatchBuffer(SIGNATURE, 1)
    mirror.put(np.array([0, 1]), batch_of(chunk(1), chunk(2)))
    rows, starts, blocks = chunk(2)
    with pytest.raises(ValueError, match=r"slots span \[1, 2\], must be in \[0, 1\]"):
        mirror.put(np.array([1, 2]), batch_of(chunk(3), chunk(4)))
    with pytest.raises(ValueError, match=r"slots have shape \(1,\), must be \(2,\), one per chunk"):
        mirror.put(np.array([1]), batch_of(chunk(3), chunk(4)))
    with pytest.raises(SignatureError, match="column 'observation'"):
        put(mirror, 0, rows, starts, (*blocks[:3], b"\xff" * 20, *blocks[4:]))
    with pytest.raises(ValueError, match="item 0: slot 0 of 2 has no start row 2 "):
        gather(mirror, [0], [2], buffer)
    gather(mirror, [1], [2], buffer)
    assert buffer.as_window_batch().columns["row_id"][0].tolist() == [2000, 2001, 2002, 2003, 2004, 2005]


@pytest.mark.parametrize(
    ("rows", "starts", "error"),
    [(11, 5, r"chunk\.rows is 11"), (7, 0, r"chunk\.starts is 0"), (9, 5, r"'row_id'\] has 80 bytes, must have 72")],
)
def test_chunks_of_another_shape_are_refused(make_mirror: MakeMirror, rows: int, starts: int, error: str) -> None:
    mirror = make_mirror(1)
    with pytest.raises(SignatureError, match=error):
        put(mirror, 0, rows, starts, chunk(1)[2])


def test_memory_is_that_of_the_records(make_mirror: MakeMirror) -> None:
    row, item = 32, 16  # 8 + 12 + 2 + 6 + 1 and 3 to make whole words; 8 + 8
    layout = RecordLayout(SIGNATURE)
    assert layout.page_bytes == 10 * row + 5 * item
    assert make_mirror(7).num_bytes == 7 * layout.page_bytes
    assert BatchBuffer(SIGNATURE, 5).num_bytes == 5 * (SIGNATURE.geometry.window * row + item)


def test_columns_of_a_record_are_apart_and_aligned() -> None:
    step = RecordLayout(SIGNATURE).step
    assert [column.name for column in step.columns] == ["row_id", "bytes12", "age", "observation", "kind"]
    assert step.begins == (0, 8, 20, 22, 28)


def test_a_type_without_counterpart_in_torch_is_refused() -> None:
    signature = Signature((ColumnSpec("odd", "complex256"),), Geometry(0, 1, 1))
    with pytest.raises(SignatureError, match="column 'odd': dtype 'complex256' has no torch type"):
        BatchBuffer(signature, 1)


def test_a_batch_moves_to_a_device_whole(make_mirror: MakeMirror) -> None:
    mirror, buffer = make_mirror(1), BatchBuffer(SIGNATURE, 1)
    put(mirror, 0, *chunk(1))
    gather(mirror, [0], [2], buffer)
    batch = buffer.as_window_batch()
    moved = batch.to(torch.device("meta"))
    for name, column in batch.columns.items():
        assert (moved.columns[name].shape, moved.columns[name].device.type) == (column.shape, "meta")
    assert moved.item_columns["core_state"].shape == (1, 2)
    assert moved.weights.device.type == moved.lengths.device.type == moved.prefixes.device.type == "meta"


def test_the_ring_is_bounded_and_waits() -> None:
    ring = BatchRing(SIGNATURE, 2, num_buffers=2)
    first, second = ring.acquire(), ring.acquire(timeout=0)
    assert first is not second
    assert ring.num_acquired == ring.num_buffers == 2
    with pytest.raises(TimeoutError, match="none of 2 batch buffers"):
        ring.acquire(timeout=0.01)
    assert ring.blocked_seconds >= 0.01
    got: list[BatchBuffer] = []
    waiter = threading.Thread(target=lambda: got.append(ring.acquire(timeout=10)))
    waiter.start()
    ring.release(first)
    waiter.join(10)
    assert got == [first]


def test_the_ring_refuses_foreign_and_free_buffers() -> None:
    ring = BatchRing(SIGNATURE, 2, num_buffers=1)
    buffer = ring.acquire()
    with pytest.raises(ValueError, match="not one of this ring's"):
        ring.release(BatchBuffer(SIGNATURE, 2))
    ring.release(buffer)
    with pytest.raises(ValueError, match="free already"):
        ring.release(buffer)


def test_no_buffer_is_ever_with_two_threads() -> None:
    ring = BatchRing(Signature((ColumnSpec("x", "int64"),), Geometry(0, 1, 1)), 1, num_buffers=2)
    errors: list[str] = []

    def work(name: int) -> None:
        for _ in range(300):
            buffer = ring.acquire(timeout=10)
            values = buffer.as_window_batch().columns["x"]
            values.fill_(name)
            if not bool((values == name).all()):
                errors.append(f"{name} saw {values.tolist()}")
            ring.release(buffer)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not errors
    assert ring.num_acquired == 0


def test_batches_kept_ready_hold_their_own_rows_though_every_slot_is_rewritten_between_replies(
    make_mirror: MakeMirror,
) -> None:
    mirror, ring = make_mirror(4), BatchRing(SIGNATURE, 16, num_buffers=8)
    rng = np.random.default_rng(0)
    ready: list[tuple[BatchBuffer, np.ndarray]] = []
    checked = 0
    for reply in range(40):
        pages = rng.permutation(np.arange(4)) + 4 * reply  # page p lives in slot p mod 4; its number is never reused
        for page in pages:
            put(mirror, int(page) % 4, *chunk(int(page)))
        drawn = rng.choice(pages, 16)
        start_rows = rng.integers(2, 7, 16)
        buffer = ring.acquire(timeout=0)
        gather(mirror, list(drawn % 4), list(start_rows), buffer)
        ready.append((buffer, (1000 * drawn + start_rows)[:, None] + np.arange(-2, 4)))
        if len(ready) == ring.num_buffers:
            oldest, expected = ready.pop(0)
            np.testing.assert_array_equal(oldest.as_window_batch().columns["row_id"].numpy(), expected)
            ring.release(oldest)
            checked += 1
    assert checked == 33
