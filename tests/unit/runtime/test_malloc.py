"""Memory that torch frees stays in the process; what a process seldom needs leaves it."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from apexrl.runtime.malloc import keep_freed_memory
took = {call}
torch.set_num_threads(1)
def churn(n):
    for _ in range(n):
        torch.ones(2_000_000).add(1.0)
churn(10)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
churn(20)
print(int(took), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

HELD = """
import threading
from apexrl.runtime.malloc import give_freed_memory_back
took = give_freed_memory_back()
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
small = []
def receive():
    before = resident()
    large = []
    for _ in range(16):
        large.append(bytearray(3 << 20))
        small.append(b"x" * 5000)
    full = resident() - before
    large.clear()
    print(int(took), full, resident() - before)
thread = threading.Thread(target=receive)
thread.start()
thread.join()
"""


def run(call: str) -> tuple[int, int]:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS.format(call=call)], capture_output=True, text=True, check=True, timeout=60
    )
    took, faults = done.stdout.split()
    return int(took), int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="advice for glibc")
def test_freed_tensors_cause_no_page_faults_when_they_are_made_again() -> None:
    took, faults = run("keep_freed_memory()")
    if not took:
        pytest.skip("this C library has no mallopt")
    assert faults < 8_000, "20 rounds of two tensors of 8 MB touch 80,000 pages; a tenth at most may be new"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="advice for glibc")
def test_large_blocks_leave_although_small_ones_between_them_stay() -> None:
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True, timeout=60)
    took, full, left = (int(word) for word in done.stdout.split())
    if not took:
        pytest.skip("this C library has no mallopt")
    assert full > 40e6
    assert left < 4e6
