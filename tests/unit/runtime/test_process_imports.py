"""What a process does not need it does not import: the replay shard has no torch in its image."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "modules",
    [
        "apexrl.replay, apexrl.transport, apexrl.config, apexrl.telemetry.metrics, apexrl.runtime.lifecycle",
        "apex_replay.servicer",
        "apex_learner.relay",
        "apexrl.experience.chunk_builder, apexrl.experience.stacking",
    ],
)
def test_no_torch_and_no_environments(modules: str) -> None:
    code = f"import sys, {modules}; print({{'torch', 'safetensors', 'gymnasium', 'matplotlib'}} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout == "set()\n", result.stderr
