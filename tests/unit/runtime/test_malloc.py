"""Memory that torch frees stays in the process."""

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
