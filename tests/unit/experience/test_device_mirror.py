"""The mirror on CUDA: what comes out of it is what comes out of the one on the host, while streams overlap."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apexrl.experience.batch import CPU, BatchBuffer
from apexrl.experience.device_mirror import STAGE_PAGES, CopyStream, DeviceMirror
from apexrl.experience.mirror import HostMirror, Place
from tests.unit.experience.test_mirror import SIGNATURE, batch_of, chunk, put


@pytest.mark.parametrize("column", [column.name for column in SIGNATURE.columns])
def test_columns_of_a_batch_are_views_of_its_records(column: str) -> None:
    buffer = BatchBuffer(SIGNATURE, 3)
    buffer.memory.steps.fill_(-1)
    buffer.memory.items.fill_(-1)
    batch = buffer.as_window_batch()
    values = np.ascontiguousarray((batch.columns | batch.item_columns)[column].numpy())
    assert (values.reshape(-1).view(np.uint8) == 255).all()
    assert batch.memory is buffer.memory
    assert batch.rows(slice(0, 2)).memory is None


def test_a_clone_is_whole_and_alone() -> None:
    buffer = BatchBuffer(SIGNATURE, 3)
    batch = buffer.as_window_batch()
    batch.columns["age"].fill_(7)
    buffer.weights[:] = [0.5, 1.0, 0.25]
    clone = batch.cloned()
    batch.columns["age"].fill_(8)
    assert (clone.columns["age"] == 7).all()
    assert clone.weights.tolist() == [0.5, 1.0, 0.25]
    assert [tensor.shape for tensor in clone.tensors()] == [tensor.shape for tensor in batch.tensors()]


@pytest.mark.parametrize("puts", [3, STAGE_PAGES, 2 * STAGE_PAGES + 1])
def test_of_chunks_put_into_one_slot_before_a_gather_the_last_counts(puts: int) -> None:
    mirrors = HostMirror(SIGNATURE, 2), DeviceMirror(SIGNATURE, 2, CopyStream(CPU))
    buffers = BatchBuffer(SIGNATURE, 2), BatchBuffer(SIGNATURE, 2)
    for mirror, buffer in zip(mirrors, buffers, strict=True):
        mirror.put(np.arange(puts) % 2, batch_of(*map(chunk, range(puts))))
        place = Place(buffer, 0, 2)
        mirror.gather(np.array([0, 1]), np.array([2, 3]), np.array([1, 2]), np.array([0, 1]), [place])
    found = buffers[0].as_window_batch().columns["row_id"][:, 2].tolist()
    assert found == [1000 * (puts - 1 - (puts - 1) % 2) + 2, 1000 * (puts - 1 - puts % 2) + 3]
    assert torch.equal(buffers[0].memory.steps, buffers[1].memory.steps)
    assert torch.equal(buffers[0].memory.items, buffers[1].memory.items)


@pytest.mark.parametrize("chunks", [STAGE_PAGES, 2 * STAGE_PAGES + 1])
def test_more_chunks_than_a_stage_holds_all_come_to_their_slots(chunks: int) -> None:
    mirror, buffer = DeviceMirror(SIGNATURE, chunks, CopyStream(CPU)), BatchBuffer(SIGNATURE, chunks)
    slots = np.random.default_rng(0).permutation(chunks)
    mirror.put(slots, batch_of(*map(chunk, range(chunks))))
    one = np.ones(chunks, np.int64)
    mirror.gather(slots, 2 * one, one, 0 * one, [Place(buffer, 0, chunks)])
    expected = [1000 * page + 2 for page in range(chunks)]
    assert buffer.as_window_batch().columns["row_id"][:, 2].tolist() == expected


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
                put(mirror, int(page) % 4, *chunk(int(page)))
        slots, starts = rng.integers(0, 4, 16), rng.integers(2, 7, 16)
        lengths, prefixes = rng.integers(1, 4, 16), rng.integers(0, 3, 16)
        for mirror, buffer in zip(mirrors, (host, on_device), strict=True):
            mirror.gather(slots, starts, lengths, prefixes, [Place(buffer, 0, 16)])
        with stream.use():
            on_device.upload()
        on_device.ready = stream.mark()
        expected, found = host.as_window_batch(), on_device.as_window_batch()
        for name, values in (expected.columns | expected.item_columns).items():
            other = (found.columns | found.item_columns)[name]
            assert other.device.type == "cuda"
            np.testing.assert_array_equal(other.cpu().numpy(), values.numpy(), err_msg=name)
        assert found.lengths.tolist() == expected.lengths.tolist()
