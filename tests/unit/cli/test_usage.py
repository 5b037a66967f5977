"""CPU time and memory of processes, and what services export."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from apex_cli.usage import Usage, child_processes, parse_metrics, process_usage, scrape, scraped_usage
from apexrl.telemetry.metrics import LearnerMetrics
from apexrl.telemetry.metrics_server import start_metrics_server


def test_usage_of_this_process() -> None:
    before = process_usage(os.getpid())
    assert before is not None
    assert before.rss_bytes > 10 << 20
    held = bytearray(64 << 20)
    spent = sum(i * i for i in range(2_000_000))
    after = process_usage(os.getpid())
    assert after is not None
    assert spent
    assert after.cpu_seconds > before.cpu_seconds
    assert after.rss_bytes >= before.rss_bytes + len(held) // 2


def test_children_and_who_is_gone() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert child.pid in child_processes(os.getpid())
        assert child.stdin is not None
        child.stdin.close()
        child.wait()
    assert child.pid not in child_processes(os.getpid())
    assert process_usage(child.pid) is None


def test_metrics_are_summed_over_labels() -> None:
    text = '# HELP a b\na_total{x="1"} 2.0\na_total{x="2"} 3.5\nb 1e3\n'
    assert parse_metrics(text) == {"a_total": 5.5, "b": 1000.0}
    assert scraped_usage({"process_cpu_seconds_total": 2.0}) is None


def test_a_service_is_scraped_and_one_that_does_not_answer_gives_nothing(unused_tcp_port: int) -> None:
    metrics = LearnerMetrics()
    metrics.mirror_bytes.inc(5)
    server = start_metrics_server(metrics, unused_tcp_port)
    assert server is not None
    with server:
        found = scrape(f"127.0.0.1:{server.port}")
    assert found["apex_learner_mirror_bytes_total"] == 5.0
    used = scraped_usage(found)
    assert isinstance(used, Usage)
    assert used.rss_bytes > 10 << 20
    assert scrape(f"127.0.0.1:{server.port}") == {}


@pytest.mark.parametrize("pid", [0, -1])
def test_what_is_no_process(pid: int) -> None:
    assert process_usage(pid) is None
