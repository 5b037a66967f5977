"""The mirror on CUDA: what comes out of it is what comes out of the one on the host, while streams overlap."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apexrl.experience.batch import CPU, BatchBuffer
from apexrl.experience.device_mirror import STAGE_PAGES, CopyStream, DeviceMirror
from apexrl.experience.mirror import HostMirror
from tests.unit.experience.test_mirror import SIGNATURE, chunk


@pytest.mark.parametrize("column", [column.name for column in SIGNATURE.columns])
def test_words_and_columns_of_a_batch_are_the_same_memory(column: str) -> None:
    buffer = BatchBuffer(SIGNATURE, 3)
    buffer.words[column].fill_(-1 if buffer.words[column].dtype.is_signed else 255)
    batch = buffer.as_window_batch()
    values = (batch.columns | batch.item_columns)[column]
    assert (values.numpy().reshape(-1).view(np.uint8) == 255).all()
    assert buffer.words[column].nbytes == values.nbytes
    assert (buffer.raw[column] == 255).all()


def test_num_bytes_are_those_of_the_pages() -> None:
    assert DeviceMirror(SIGNATURE, 7, CopyStream(CPU)).num_bytes == 7 * SIGNATURE.page_bytes


@pytest.mark.parametrize("puts", [3, STAGE_PAGES, 2 * STAGE_PAGES + 1])
def test_of_chunks_put_into_one_slot_before_a_gather_the_last_counts(puts: int) -> None:
    mirrors = HostMirror(SIGNATURE, 2), DeviceMirror(SIGNATURE, 2, CopyStream(CPU))
    buffers = BatchBuffer(SIGNATURE, 2), BatchBuffer(SIGNATURE, 2)
    for mirror, buffer in zip(mirrors, buffers, strict=True):
        for page in range(puts):
            mirror.put(page % 2, *chunk(page))
        mirror.gather(np.array([0, 1]), np.array([2, 3]), np.array([1, 2]), np.array([0, 1]), buffer)
    for column in SIGNATURE.columns:
        np.testing.assert_array_equal(buffers[1].raw[column.name], buffers[0].raw[column.name], err_msg=column.name)


def test_what_the_host_writes_of_a_batch_is_what_the_update_reads() -> None:
    buffer = BatchBuffer(SIGNATURE, 3)
    buffer.lengths[:], buffer.prefixes[:], buffer.weights[:] = [1, 2, 3], [2, 1, 0], [0.5, 1.0, 0.25]
    buffer.upload()
    batch = buffer.as_window_batch()
    assert batch.lengths.tolist() == [1, 2, 3]
    assert batch.prefixes.tolist() == [2, 1, 0]
    assert batch.weights.tolist() == [0.5, 1.0, 0.25]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_batches_equal_those_of_the_host_though_slots_are_rewritten_behind_them() -> None:
    device = torch.device("cuda")
    stream = CopyStream(device)
    mirrors = HostMirror(SIGNATURE, 4), DeviceMirror(SIGNATURE, 4, stream)
    buffers = [(BatchBuffer(SIGNATURE, 16), BatchBuffer(SIGNATURE, 16, device)) for _ in range(8)]
    rng = np.random.default_rng(0)
    for reply in range(200):
        host, on_device = buffers[reply % len(buffers)]
        for page in rng.permutation(np.arange(4)) + 4 * reply:
            for mirror in mirrors:
                mirror.put(int(page) % 4, *chunk(int(page)))
        slots, starts = rng.integers(0, 4, 16), rng.integers(2, 7, 16)
        lengths, prefixes = rng.integers(1, 4, 16), rng.integers(0, 3, 16)
        for mirror, buffer in zip(mirrors, (host, on_device), strict=True):
            mirror.gather(slots, starts, lengths, prefixes, buffer)
        with stream.use():
            on_device.upload()
        on_device.ready = stream.mark()
        expected, found = host.as_window_batch(), on_device.as_window_batch()
        for name, values in (expected.columns | expected.item_columns).items():
            other = (found.columns | found.item_columns)[name]
            assert other.device.type == "cuda"
            np.testing.assert_array_equal(other.cpu().numpy(), values.numpy(), err_msg=name)
        assert found.lengths.tolist() == expected.lengths.tolist()
