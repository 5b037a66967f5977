"""Torch on the CPU: threads, and no slow arithmetic on subnormal floats."""

from __future__ import annotations

import subprocess
import sys

import pytest

# In a process of its own: the settings are the process's.
CODE = """
import threading, torch
from apexrl.runtime.torch_cpu import configure_torch
configure_torch({threads})
tiny = torch.full((64, 1024), 1e-30)
results = [float((tiny * 1e-10).max())]
thread = threading.Thread(target=lambda: results.append(float((tiny * 1e-10).max())))
thread.start()
thread.join()
print(torch.get_num_threads(), results)
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_subnormal_results_are_zero_on_every_thread(threads: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(threads=threads)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == f"{threads} [0.0, 0.0]\n"
