from __future__ import annotations

import tracemalloc

import lz4.block
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apexrl.experience.codec import encode_block
from apexrl.experience.decoding import decode_chunk
from apexrl.types import Array, Codec, ColumnSpec, Geometry, Scope, Signature, SignatureError

SIGNATURE = Signature(
    (
        ColumnSpec("observation", "uint8", (1, 16, 16), codec=Codec.LZ4),
        ColumnSpec("reward", "float32"),
        ColumnSpec("parameter_version", "uint64", scope=Scope.ITEM),
    ),
    Geometry(3, 8, 2),
)


def arrays(rows: int = 13, starts: int = 8) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {
        "observation": rng.integers(0, 255, (rows, 1, 16, 16), dtype=np.uint8),
        "reward": rng.normal(size=rows).astype(np.float32),
        "parameter_version": rng.integers(0, 1 << 60, starts, dtype=np.uint64),
    }


def blocks(rows: int = 13, starts: int = 8) -> list[bytes]:
    return [encode_block(SIGNATURE.column(name), values) for name, values in arrays(rows, starts).items()]


@pytest.mark.parametrize(("rows", "starts"), [(13, 8), (12, 8), (11, 8), (4, 1), (6, 1)])
def test_round_trip(rows: int, starts: int) -> None:
    decoded = decode_chunk(SIGNATURE, rows, starts, blocks(rows, starts))
    for name, values in arrays(rows, starts).items():
        assert decoded[name].dtype == values.dtype
        np.testing.assert_array_equal(decoded[name], values)


def test_values_that_are_not_contiguous_are_encoded_in_order() -> None:
    values = np.arange(32, dtype=np.float32).reshape(8, 4)[:, 1]
    column = ColumnSpec("reward", "float32", codec=Codec.LZ4)
    assert encode_block(column, values) == encode_block(column, values.copy())


@pytest.mark.parametrize(
    ("rows", "starts", "message"),
    [
        (13, 0, r"chunk.starts is 0, must be in \[1, 8\]"),
        (13, 9, r"chunk.starts is 9, must be in \[1, 8\]"),
        (14, 8, r"chunk.rows is 14, must be in \[11, 13\]"),
        (10, 8, r"chunk.rows is 10, must be in \[11, 13\]"),
        (13, 7, r"chunk.rows is 13, must be in \[10, 12\]"),
    ],
)
def test_impossible_row_counts_are_refused(rows: int, starts: int, message: str) -> None:
    with pytest.raises(SignatureError, match=message):
        decode_chunk(SIGNATURE, rows, starts, blocks())


def test_a_missing_block_is_refused() -> None:
    with pytest.raises(SignatureError, match=r"chunk\.blocks has 2 columns, must have 3"):
        decode_chunk(SIGNATURE, 13, 8, blocks()[:2])


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b""])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_blocks_of_another_size_are_refused(index: int, change: object) -> None:
    wrong = blocks()
    wrong[index] = change(wrong[index])  # type: ignore[operator]
    with pytest.raises(SignatureError, match=f"'{SIGNATURE.columns[index].name}'"):
        decode_chunk(SIGNATURE, 13, 8, wrong)


@pytest.mark.parametrize("num_bytes", [13 * 256 - 1, 13 * 256 + 1, 10 * 13 * 256])
def test_lz4_blocks_of_another_length_of_data_are_refused(num_bytes: int) -> None:
    wrong = blocks()
    wrong[0] = lz4.block.compress(bytes(num_bytes), store_size=False)
    with pytest.raises(SignatureError, match="column 'observation'"):
        decode_chunk(SIGNATURE, 13, 8, wrong)


@pytest.mark.parametrize("forged", [(1 << 31) - 1, 0xFFFFFFFF, 1 << 30])
def test_a_forged_size_does_not_allocate(forged: int) -> None:
    bomb = lz4.block.compress(bytes(1 << 22), store_size=False)
    for block in (forged.to_bytes(4, "little") + blocks()[0], bomb):
        wrong = [block, *blocks()[1:]]
        tracemalloc.start()
        try:
            with pytest.raises(SignatureError, match="'observation'"):
                decode_chunk(SIGNATURE, 13, 8, wrong)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=4000))
def test_random_blocks_are_refused_or_decode_to_the_exact_size(block: bytes) -> None:
    try:
        rows = len(decode_chunk(SIGNATURE, 13, 8, [block, *blocks()[1:]])["observation"])
    except SignatureError:
        rows = None
    assert rows in (None, 13)
