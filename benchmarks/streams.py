"""What many insert streams cost a shard: 500 streams against one stream that carries as many transitions.

    python benchmarks/streams.py configs/pong_small.yaml --seconds 30 --windows 20 --write

Two shard processes: one has ``--streams`` synthetic actors, each with a TCP connection of its own, the other has one.
Both get the same recorded chunks at the same total rate, in turns: while one is loaded, the other idles. CPU time is
that of the shard process alone, per million transitions that it acknowledged. Before the first window both tables are
filled, so that memory has no reason to grow; its slope is fitted over all windows of the shard with many streams. They
last ``--seconds`` times ``--windows``, ten minutes in the command above, which takes twice as long. An actor hands over
all chunks that are full in one turn; with ``--actor.lanes 1``, which is the default here and the paper's, that is the
fewest. Unknown arguments are overrides.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apex_actor.pacing import PacedStream, Pacer
from apex_actor.recording import Recording, from_burst, record_play
from apex_cli.processes import Service, stop_in_order
from apex_cli.train import free_ports
from apex_cli.usage import Usage, process_usage
from apexrl.algorithms import make_algorithm
from apexrl.config import ExperimentConfig, dump_yaml, shared_json
from apexrl.envs import env_spec
from apexrl.telemetry.logging import configure_logging
from apexrl.transport.handshake import Handshake
from apexrl.transport.info_client import fetch_info
from apexrl.transport.insert_client import InsertClient
from benchmarks.aggregation import spread
from benchmarks.options import conclude, load, parser, run
from benchmarks.windows import Window, interleave, ratios

SUBJECT = "streams"
#: A small budget has small slabs: they have all been written to when the table has turned over once.
#: And no limiter: it would wait for a learner.
OWN_OVERRIDES = (
    *("--actor.lanes", "1"),
    *("--replay.budget-bytes", str(64 << 20)),
    *("--replay.samples-per-insert", "0", "--replay.slack-items", "0"),
)
#: Of the table's capacity, inserted before the first window: pages come and go from there on.
FILL = 1.6
#: Bursts of each stream before the first window.
WARM_BURSTS = 2.0
#: No learner takes part; any run will do.
RUN_ID = "5" * 32
#: Transitions per second of the paper's 360 actors: 50,000 frames per second, four to a transition.
TOTAL_ITEMS_PER_SECOND = 12_500.0
#: After a pause the streams are opened or filled again for this long before anything is counted.
SETTLE_SECONDS = 2.0
START_SECONDS = 120.0
FLUSH_SECONDS = 30.0
MEGABYTE = 1e6
CPU_RATIO_AT_MOST = 1.3
#: 10 minutes at this slope are as much as the noise of an allocator.
RSS_SLOPE_AT_MOST = 1.0


class LoadedShard:
    """A shard process with so many streams into it.

    Args:
        name: of the process's log.
        config: with the table; ``replay.listen`` is chosen here.
        recording: what is sent.
        streams: how many share ``items_per_second``.
        items_per_second: transitions per second of all streams together.
        directory: where the log goes.
    """

    def __init__(
        self,
        name: str,
        config: ExperimentConfig[Any],
        recording: Recording,
        *,
        streams: int,
        items_per_second: float,
        directory: Path,
    ) -> None:
        (port,) = free_ports(1)
        address = f"127.0.0.1:{port}"
        path = directory / f"{name}.yaml"
        path.write_text(dump_yaml(config), encoding="utf-8")
        self._service = Service(
            name, "apex_replay", ["--config", str(path), "--replay.listen", address], directory / f"{name}.log"
        )
        self._service.start()
        self._address = address
        self._capacity = config.replay.capacity_items
        (table,) = make_algorithm(config, env_spec(config.env)).tables()
        handshake = Handshake(RUN_ID, shared_json(config))
        generator = np.random.default_rng([config.seed, streams])
        self._interval = float(np.mean([burst.items for burst in recording.bursts])) * streams / items_per_second
        # One stream has the room that many would have together: the windows are not what is compared.
        window = max(config.actor.max_unacked_chunks, 1024 // streams)
        self.clients = [
            InsertClient(address, handshake, table.config, window, connection=f"stream-{number}")
            for number in range(streams)
        ]
        self._recording = recording
        self._streams = [
            PacedStream(
                client.put,
                from_burst(recording, int(generator.integers(len(recording.bursts)))),
                items_per_second / streams,
                generator.random() * self._interval,
            )
            for client in self.clients
        ]
        self._pacer = Pacer(self._streams)
        self.seconds_per_million: list[float] = []
        """CPU time of the shard per million transitions, of each window."""
        self.items_per_second: list[float] = []
        self.memory: list[list[tuple[float, float]]] = []
        """(seconds of this shard's loaded time, resident MB), each second of each window."""
        self._loaded = 0.0

    def warm_up(self) -> None:
        """Fill the table beyond its capacity, and let every stream send: each connection keeps buffers from then on.

        Raises:
            TimeoutError: the shard has not got that far in time; the message ends with its log.
        """
        client = self.clients[0]
        bursts, items = from_burst(self._recording, 0), 0
        while items < self._capacity * FILL:
            burst = next(bursts)
            items += burst.items
            if client.put(burst.chunks, timeout=START_SECONDS) < len(burst.chunks):
                raise TimeoutError(f"the shard takes no chunks: {client.waiting()}\n{self._service.log_tail()}")
        if not client.flush(FLUSH_SECONDS):
            raise TimeoutError(f"the shard acknowledges nothing: {client.waiting()}\n{self._service.log_tail()}")
        self._pacer.resume()
        time.sleep(WARM_BURSTS * self._interval)
        self._pacer.pause()

    def window(self, seconds: float) -> float:
        """Load the shard for ``seconds``; returns transitions per second. Idle before and after."""
        self.memory.append([])
        self._pacer.resume()
        try:
            self._watch(SETTLE_SECONDS)
            begin, cpu, items = time.monotonic(), self._cpu_seconds(), self._inserted()
            self._watch(seconds)
            spent, taken = self._cpu_seconds() - cpu, self._inserted() - items
            rate = taken / (time.monotonic() - begin)
        finally:
            self._pacer.pause()
        # What is under way must not fall into the other shard's window.
        for client in self.clients:
            client.flush(FLUSH_SECONDS)
        self.seconds_per_million.append(spent / max(1, taken) * 1e6)
        self.items_per_second.append(rate)
        return rate

    @property
    def late_seconds(self) -> float:
        """Play that this process skipped because it was too slow, all streams together."""
        return sum(stream.late_seconds for stream in self._streams)

    @property
    def blocked_seconds(self) -> float:
        """All streams together."""
        now = self._pacer.now
        return sum(stream.blocked_seconds(now) for stream in self._streams)

    def stop(self) -> None:
        """End the streams and the process."""
        self._pacer.stop()
        for client in self.clients:
            client.close()
        stop_in_order([([self._service], 5.0)])

    def _watch(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(1.0, left))
            self._loaded += min(1.0, left)
            self.memory[-1].append((self._loaded, self._usage().rss_bytes / MEGABYTE))

    def _cpu_seconds(self) -> float:
        return self._usage().cpu_seconds

    def _usage(self) -> Usage:
        process = self._service.process
        used = None if process is None else process_usage(process.pid)
        if used is None:
            raise RuntimeError(f"the shard has ended:\n{self._service.log_tail()}")
        return used

    def _inserted(self) -> int:
        info = fetch_info(self._address, timeout_seconds=FLUSH_SECONDS)
        return sum(int(table.totals.inserted) for table in info.tables)


def slope_per_minute(samples: Sequence[tuple[float, float]]) -> float:
    """Slope of the straight line through (seconds, value), per minute, by least squares.

    Raises:
        ValueError: fewer than two samples.
    """
    if len(samples) < 2:
        raise ValueError(f"{len(samples)} samples have no slope, must be at least 2")
    seconds, values = np.array(samples).T
    return float(np.polyfit(seconds / 60.0, values, 1)[0])


def metrics_of(shards: dict[str, LoadedShard], windows: int, options: argparse.Namespace) -> dict[str, Any]:
    """Metrics of the last ``windows`` windows; earlier ones warmed up."""
    many, one = shards["many"], shards["one"]
    cpu = {name: shard.seconds_per_million[-windows:] for name, shard in shards.items()}
    memory = [sample for window in many.memory[-windows:] for sample in window]
    return {
        "cpu_ratio_to_one_stream": round(float(np.median(ratios(cpu["many"], cpu["one"]))), 4),
        "cpu_seconds_per_million_transitions": {name: spread(values) for name, values in cpu.items()},
        "transitions_per_second": {name: spread(shard.items_per_second[-windows:]) for name, shard in shards.items()},
        "rss_slope_mb_per_minute": round(slope_per_minute(memory), 3),
        "rss_mb": spread([value for _, value in memory]),
        "rss_mb_one_stream": spread([value for window in one.memory[-windows:] for _, value in window]),
        "streams": options.streams,
        "offered_transitions_per_second": options.rate,
        "blocked_seconds": {name: round(shard.blocked_seconds, 2) for name, shard in shards.items()},
        "late_seconds": {name: round(shard.late_seconds, 2) for name, shard in shards.items()},
        "loaded_seconds": round(sum(1 for _ in memory), 1),
        "windows": {name: [round(value, 3) for value in values] for name, values in cpu.items()},
        "window_seconds": options.seconds,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    options_parser = parser(__doc__, seconds=10.0, windows=3)
    options_parser.add_argument("--streams", type=int, default=500, help="streams of the loaded shard (%(default)s)")
    options_parser.add_argument(
        "--rate",
        type=float,
        default=TOTAL_ITEMS_PER_SECOND,
        help="transitions per second, of all streams together and of the one (%(default)s)",
    )
    options_parser.add_argument("--recorded-steps", type=int, default=8192, help="steps to record (%(default)s)")
    options, overrides = options_parser.parse_known_args(arguments)
    if options.streams < 2 or options.rate <= 0:
        options_parser.error(f"--streams is {options.streams}, --rate {options.rate}: must be at least 2 and above 0")
    configure_logging("streams", log_format="console", level="ERROR")
    config = load(options.config, overrides, OWN_OVERRIDES)
    recording = record_play(config, options.recorded_steps)
    with tempfile.TemporaryDirectory(prefix="apex-streams-") as directory, contextlib.ExitStack() as stack:
        shards: dict[str, LoadedShard] = {}
        for name, streams in (("many", options.streams), ("one", 1)):
            shards[name] = LoadedShard(
                name,
                config,
                recording,
                streams=streams,
                items_per_second=options.rate,
                directory=Path(directory),
            )
            stack.callback(shards[name].stop)
        for shard in shards.values():
            shard.warm_up()
        programs: dict[str, Window] = {name: shard.window for name, shard in shards.items()}
        interleave(programs, seconds=options.seconds, windows=options.windows)
        metrics = metrics_of(shards, options.windows, options)
    metrics["bytes_per_transition"] = round(recording.bytes_per_item, 1)
    metrics["lanes_per_stream"] = config.actor.lanes
    return conclude(
        SUBJECT,
        metrics=metrics,
        goals={
            "cpu_ratio_to_one_stream": {"at_most": CPU_RATIO_AT_MOST},
            "rss_slope_mb_per_minute": {"at_most": RSS_SLOPE_AT_MOST},
        },
        seeds=[config.seed],
        notes=(
            f"{options.streams} streams into one shard process, each over a connection of its own, against one stream "
            "into another, at the same total rate, in turns. cpu_ratio_to_one_stream = median over window pairs of the "
            "shard processes' CPU seconds per transition. rss_slope_mb_per_minute = slope of the loaded shard's "
            "resident memory, table full from the start. late_seconds: what the sending process skipped."
        ),
        write=options.write,
    )


if __name__ == "__main__":
    sys.exit(run(main))
