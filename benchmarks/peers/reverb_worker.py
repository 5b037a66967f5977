"""dm-reverb as server, writer or reader: one process each, under the peer's own interpreter.

    reverb_worker.py server LAYOUT PORT MAX_ITEMS MIN_ITEMS SAMPLES_PER_INSERT FORM
    reverb_worker.py insert LAYOUT PORT RECORDING FORM
    reverb_worker.py sample LAYOUT PORT BATCH_SIZE

FORM is JSON, see :class:`Form`. A layout is how an n-step transition of stacked frames is stored:

naive      one step with both stacks, as agents without frame sharing write it
frames4    single frames in chunks of 4; an item refers to its stack - 1 + 1 + n frames, as ours does
frames16   the same in chunks of 16

Stacks are what ours makes of such a window in the learner's update, so that both deliver the same frames. Writers read
the recording lane after lane and take no notice of the ends of episodes, which costs them nothing. Options are those
that the package's documentation recommends: a TrajectoryWriter with configured chunk lengths and bounded items in
flight, and a TrajectoryDataset that batches and prefetches.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np
import reverb  # type: ignore[import-not-found]
import tensorflow as tf  # type: ignore[import-untyped]

from benchmarks.peers.replay_work import Client, serve_client

TABLE = "replay"
PRIORITY_EXPONENT = 0.6
CHUNK_LENGTHS = {"naive": 1, "frames4": 4, "frames16": 16}
#: What a step holds besides its frame.
STEP_COLUMNS = ("action", "reward", "discount")
#: Items that a writer may have in flight, and after how many it looks. Above 50 in all the package warns for each item;
#: below a chunk and a window it would cut chunks short.
ITEMS_IN_FLIGHT = 32
FLUSH_EVERY = 16
FLUSH_SECONDS = 0.5
#: Items by which inserts and samples may run ahead of one another; our limiter's least slack is about as much.
SLACK_ITEMS = 2_000
#: Samples under way to the reader: two batches.
SAMPLES_IN_FLIGHT = 1024


class Form(NamedTuple):
    """What steps and items look like."""

    stack: int
    """Frames of an observation."""
    n_steps: int
    frame: list[int]
    """Shape of one frame."""
    frame_dtype: str
    action: list[int]
    """Shape of an action."""
    action_dtype: str

    def step_spec(self, column: str) -> tf.TensorSpec:
        """Shape and type of one of the step's columns."""
        shape, dtype = (self.action, self.action_dtype) if column == "action" else ([], "float32")
        return tf.TensorSpec(shape, tf.as_dtype(dtype))

    def frames_spec(self, count: int) -> tf.TensorSpec:
        """Shape and type of that many frames: vectors are concatenated only by who reads them."""
        return tf.TensorSpec([count, *self.frame], tf.as_dtype(self.frame_dtype))


class Server:
    """A table with prioritised draws and first-in-first-out removal, and the limiter that was asked for."""

    def __init__(
        self, layout: str, port: str, max_items: str, min_items: str, samples_per_insert: str, form: str
    ) -> None:
        ratio, least = float(samples_per_insert), int(min_items)
        if ratio > 0:
            slack = ratio * min(least, SLACK_ITEMS)
            limiter = reverb.rate_limiters.SampleToInsertRatio(ratio, least, error_buffer=slack)
        else:
            limiter = reverb.rate_limiters.MinSize(least)
        table = reverb.Table(
            name=TABLE,
            sampler=reverb.selectors.Prioritized(PRIORITY_EXPONENT),
            remover=reverb.selectors.Fifo(),
            max_size=int(max_items),
            rate_limiter=limiter,
            signature=signature(layout, Form(**json.loads(form))),
        )
        self._server = reverb.Server([table], port=int(port))

    def run(self, seconds: float, units: float) -> int:
        """Nothing: its threads serve by themselves."""
        return 0


def signature(layout: str, form: Form) -> dict[str, tf.TensorSpec]:
    """Shapes and types of an item."""
    others = {name: form.step_spec(name) for name in STEP_COLUMNS}
    if layout == "naive":
        stacks = form.frames_spec(form.stack)
        return {"observation": stacks, "next_observation": stacks, **others}
    return {"frames": form.frames_spec(form.stack + form.n_steps), **others}


class Inserter:
    """Writes one item per recorded step, lane after lane, again and again."""

    def __init__(self, layout: str, port: str, recording: str, form: str) -> None:
        self._naive = layout == "naive"
        own = Form(**json.loads(form))
        self._stack, self._n = own.stack, own.n_steps
        folder = Path(recording)

        def lanes_in_turn(name: str) -> np.ndarray:
            values = np.load(folder / f"{name}.npy").swapaxes(0, 1)
            return np.ascontiguousarray(values).reshape(-1, *values.shape[2:])

        self._frames = lanes_in_turn("rows-observation")
        self._actions = lanes_in_turn("rows-action").astype(own.action_dtype)
        self._rewards = lanes_in_turn("rows-reward").astype(np.float32)
        self._discounts = lanes_in_turn("rows-continuation").astype(np.float32)
        self._priorities = lanes_in_turn("priority").tolist()
        window = self._stack + self._n
        chunk = CHUNK_LENGTHS[layout]
        self._writer = reverb.Client(f"127.0.0.1:{port}").trajectory_writer(
            num_keep_alive_refs=1 if self._naive else chunk + window
        )
        self._first = window - 1
        self._step = self._first if self._naive else 0
        columns = ("observation", "next_observation") if self._naive else ("frame",)
        self._configure([*columns, *STEP_COLUMNS], chunk, 1 if self._naive else chunk + window)

    def _configure(self, columns: list[str], chunk: int, keep: int) -> None:
        for name in columns:
            self._writer.configure((name,), num_keep_alive_refs=keep, max_chunk_length=chunk)

    def run(self, seconds: float, units: float) -> int:
        """Insert for so many seconds, or so many items; returns the items."""
        end = time.monotonic() + seconds
        write = self._write_naive if self._naive else self._write_frame
        items = 0
        while items < units:
            items += write()
            if items % FLUSH_EVERY == 0:
                left = end - time.monotonic()
                if left <= 0 or not self._flush(ITEMS_IN_FLIGHT, left):
                    break
        self._flush(0, FLUSH_SECONDS)
        return items

    def _flush(self, in_flight: int, seconds: float) -> bool:
        """Wait until at most so many items are in flight; False at a limiter that lets none in for so long."""
        try:
            self._writer.flush(block_until_num_items=in_flight, timeout_ms=max(1, int(1000 * seconds)))
        except reverb.errors.DeadlineExceededError:
            return False
        return True

    def _write_naive(self) -> int:
        t, first = self._step, self._step - self._n
        self._writer.append(
            {
                "observation": self._frames[first - self._stack + 1 : first + 1],
                "next_observation": self._frames[t - self._stack + 1 : t + 1],
                "action": self._actions[first],
                "reward": self._rewards[first],
                "discount": self._discounts[first],
            }
        )
        history = self._writer.history
        self._writer.create_item(TABLE, self._priorities[first], {name: history[name][-1] for name in history})
        self._step = t + 1 if t + 1 < len(self._frames) else self._first
        return 1

    def _write_frame(self) -> int:
        t = self._step
        self._writer.append(
            {
                "frame": self._frames[t],
                "action": self._actions[t],
                "reward": self._rewards[t],
                "discount": self._discounts[t],
            }
        )
        self._step = (t + 1) % len(self._frames)
        # Behind the recording's end the first frames follow the last, which are as good.
        history = self._writer.history
        if len(history["frame"]) < self._stack + self._n:
            return 0
        trajectory = {"frames": history["frame"][-self._stack - self._n :]}
        trajectory |= {name: history[name][-1 - self._n] for name in STEP_COLUMNS}
        self._writer.create_item(TABLE, self._priorities[t - self._n], trajectory)
        return 1


class Sampler:
    """Batches as tensors from a dataset that prefetches."""

    def __init__(self, layout: str, port: str, batch_size: str) -> None:
        tf.config.threading.set_intra_op_parallelism_threads(2)
        tf.config.threading.set_inter_op_parallelism_threads(2)
        self._batch_size = int(batch_size)
        dataset = reverb.TrajectoryDataset.from_table_signature(
            f"127.0.0.1:{port}", TABLE, max_in_flight_samples_per_worker=SAMPLES_IN_FLIGHT
        )
        self._batches = iter(dataset.batch(self._batch_size, drop_remainder=True).prefetch(2))

    def run(self, seconds: float, units: float) -> int:
        """Take batches for so many seconds, or so many items; returns the items."""
        end = time.monotonic() + seconds
        items = 0
        while items < units and time.monotonic() < end:
            next(self._batches)
            items += self._batch_size
        return items


def main() -> int:
    """Serve requests until standard input ends."""
    roles: dict[str, Callable[..., Client]] = {"server": Server, "insert": Inserter, "sample": Sampler}
    serve_client(roles[sys.argv[1]](*sys.argv[2:]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
