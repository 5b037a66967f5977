"""`kubectl scale` survives upgrades: helm reads the live number back. A stand-in for the API server; needs helm."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_scene import CHART, HELM_OPTIONS, helm, one

RESOURCES = {
    "kind": "APIResourceList",
    "apiVersion": "v1",
    "groupVersion": "apps/v1",
    "resources": [{"name": "deployments", "kind": "Deployment", "namespaced": True, "verbs": ["get", "list"]}],
}
NOT_FOUND = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Callable[[int | None], str]]:
    """Gives a kubeconfig of a cluster whose apex-actor has so many replicas; None = there is none."""
    answers: dict[str, dict[str, Any]] = {"/apis/apps/v1": RESOURCES}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = answers.get(self.path.partition("?")[0], NOT_FOUND)
            body = json.dumps(answer).encode()
            self.send_response(404 if answer is NOT_FOUND else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def kubeconfig(replicas: int | None) -> str:
        if replicas is not None:
            answers["/apis/apps/v1/namespaces/lab/deployments/apex-actor"] = {
                "kind": "Deployment",
                "apiVersion": "apps/v1",
                "metadata": {"name": "apex-actor", "namespace": "lab"},
                "spec": {"replicas": replicas},
            }
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "lab",
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
            "clusters": [{"name": "lab", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
            "users": [{"name": "lab", "user": {}}],
        }
        file = tmp_path / "kubeconfig"
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
        return str(file)

    yield kubeconfig
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("live", "policy", "rendered"),
    [
        (None, "initial", 5),
        (300, "initial", 300),
        (0, "initial", 0),
        (300, "managed", 5),
        (300, "external", None),
        (None, "external", None),
    ],
)
def test_the_number_of_actors(
    cluster: Callable[[int | None], str], live: int | None, policy: str, rendered: int | None
) -> None:
    values = ("--set", f"actor.replicas=5,actor.replicasPolicy={policy}")
    where = ("--namespace", "lab", "--kubeconfig", cluster(live), "--dry-run=server")
    done = helm("template", "apex", str(CHART), *where, *HELM_OPTIONS, *values)
    assert done.returncode == 0, done.stderr
    manifests = [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]
    assert one(manifests, "Deployment", "apex-actor")["spec"].get("replicas") == rendered
