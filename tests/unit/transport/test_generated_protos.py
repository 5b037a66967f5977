"""The committed generated code is what the protos give, and it stays out of the import name `apex`."""

from __future__ import annotations

import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from apex_learner.serving import CoordinatorServicer
from apex_replay.servicer import ReplayServicer
from apexrl.transport._generated.apex.v1 import coordinator_pb2_grpc, parameters_pb2_grpc, replay_pb2_grpc
from apexrl.transport.parameter_server import ParametersServicer

ROOT = Path(__file__).resolve().parents[3]


def test_committed_code_matches_the_protos() -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is a development dependency")
    spec = importlib.util.spec_from_file_location("generate_protos", ROOT / "tools" / "generate_protos.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.differences(module.generate()) == [], "run: python tools/generate_protos.py"


def test_generated_code_does_not_occupy_the_name_apex() -> None:
    module = "apexrl.transport._generated.apex.v1.replay_pb2_grpc"
    code = f"import sys, {module}; sys.exit(any(m.split('.')[0] == 'apex' for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_messages_can_be_pickled() -> None:
    from apexrl.transport import replay_pb2

    message = replay_pb2.TableTotals(table="replay", num_items=3)
    assert pickle.loads(pickle.dumps(message)) == message


@pytest.mark.parametrize(
    ("generated", "ours"),
    [
        (replay_pb2_grpc.ReplayServicer, ReplayServicer),
        (parameters_pb2_grpc.ParametersServicer, ParametersServicer),
        (coordinator_pb2_grpc.CoordinatorServicer, CoordinatorServicer),
    ],
)
def test_every_call_of_the_protos_is_answered(generated: type, ours: type) -> None:
    calls = [name for name in vars(generated) if not name.startswith("_")]
    assert calls
    assert [name for name in calls if getattr(ours, name) is getattr(generated, name)] == []
