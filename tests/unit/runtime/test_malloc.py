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

#: For the programs that ask what they hold.
RESIDENT = """
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
"""

HELD = """
import threading
from apexrl.runtime.malloc import give_freed_memory_back
took = give_freed_memory_back()
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

#: A thread takes 64 MB in small blocks and keeps every sixteenth, the last one as well.
SCATTERED = """
import threading
from apexrl.runtime.malloc import give_freed_memory_back, trim_heaps
took = give_freed_memory_back()
kept = []
def receive():
    kept.extend([b"x" * 64_000 for _ in range(1000)][15::16])
before = resident()
thread = threading.Thread(target=receive)
thread.start()
thread.join()
freed = resident() - before
print(int(took), freed, int(trim_heaps()), resident() - before)
"""

#: Eight threads that live at once take and free 2 MB one after the other.
TURNS = """
import sys, threading
from apexrl.runtime.malloc import keep_freed_memory
took = keep_freed_memory(few_heaps=sys.argv[1] == "few")
turns = [threading.Event() for _ in range(9)]
def receive(number):
    turns[number].wait()
    bytearray(2 << 20)
    turns[number + 1].set()
    turns[8].wait()
threads = [threading.Thread(target=receive, args=(number,)) for number in range(8)]
for thread in threads:
    thread.start()
before = resident()
turns[0].set()
turns[8].wait()
print(int(took), resident() - before)
"""


def numbers(program: str, *arguments: str) -> list[int]:
    """What a program prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="advice for glibc")
@pytest.mark.parametrize("few_heaps", [False, True])
def test_freed_tensors_cause_no_page_faults_when_they_are_made_again(few_heaps: bool) -> None:
    took, faults = numbers(FAULTS.format(call=f"keep_freed_memory(few_heaps={few_heaps})"))
    if not took:
        pytest.skip("this C library has no mallopt")
    assert faults < 8_000, "20 rounds of two tensors of 8 MB touch 80,000 pages; a tenth at most may be new"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="advice for glibc")
def test_threads_in_turn_need_no_memory_of_their_own_with_few_heaps() -> None:
    took, own = numbers(RESIDENT + TURNS, "many")
    _, shared = numbers(RESIDENT + TURNS, "few")
    if not took:
        pytest.skip("this C library has no mallopt")
    assert own > 7 * 2e6, "eight threads keep 2 MB each"
    assert shared < own / 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="advice for glibc")
def test_large_blocks_leave_although_small_ones_between_them_stay() -> None:
    took, full, left = numbers(RESIDENT + HELD)
    if not took:
        pytest.skip("this C library has no mallopt")
    assert full > 40e6
    assert left < 4e6


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="advice for glibc")
def test_free_pages_between_blocks_that_stay_leave_when_heaps_are_trimmed() -> None:
    took, freed, any_left, held = numbers(RESIDENT + SCATTERED)
    if not took:
        pytest.skip("this C library has no mallopt")
    assert freed > 40e6, "blocks that stay hold what was freed below them"
    assert any_left
    assert 62 * 64_000 < held < 10e6
