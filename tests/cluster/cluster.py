"""kubectl and helm as subprocesses, and waiting with a deadline. Nothing here knows of apex."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

#: No call of kubectl or helm may take longer, but for those that wait for pods.
CALL_SECONDS = 120.0
POLL_SECONDS = 1.0

Manifest = dict[str, Any]
T = TypeVar("T")


class StepFailed(Exception):
    """The step's claim does not hold; the message says what was seen."""


class NotHere(Exception):
    """The cluster cannot show what the step is about; the message says what it lacks."""


class CommandFailed(StepFailed):
    """A command of a step ended with an exit code other than 0."""

    def __init__(self, command: Sequence[str], done: subprocess.CompletedProcess[str]) -> None:
        text = (done.stderr or done.stdout).strip()
        super().__init__(f"{' '.join(command)[:300]}: exit code {done.returncode}: {text[-1500:]}")
        self.stderr = done.stderr


def until(what: str, probe: Callable[[], T | None], seconds: float, every: float = POLL_SECONDS) -> T:
    """What ``probe`` returns once that is neither None nor False.

    A command that fails within ``probe`` counts as "not yet": pods come and go while we look.

    Raises:
        StepFailed: not within ``seconds``; names ``what`` and the last failure.
    """
    deadline = time.monotonic() + seconds
    last = ""
    while True:
        try:
            found = probe()
            if found is not None and found is not False:
                return found
        except CommandFailed as error:
            last = f"; last: {error}"
        if time.monotonic() >= deadline:
            raise StepFailed(f"waited {seconds:.0f} s for {what}{last}")
        time.sleep(every)


def run(command: Sequence[str], *, stdin: str | None = None, seconds: float = CALL_SECONDS) -> str:
    """Standard output of a command.

    Raises:
        CommandFailed: it ended with another exit code than 0.
        StepFailed: it took more than ``seconds``.
    """
    try:
        done = subprocess.run(list(command), input=stdin, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise StepFailed(f"{' '.join(command)[:300]}: no end within {seconds:.0f} s") from None
    if done.returncode != 0:
        raise CommandFailed(command, done)
    return done.stdout


@dataclass(frozen=True)
class Cluster:
    """The cluster that KUBECONFIG names, seen from one namespace."""

    namespace: str

    def kubectl(self, *arguments: str, stdin: str | None = None, seconds: float = CALL_SECONDS) -> str:
        return run(["kubectl", "--namespace", self.namespace, *arguments], stdin=stdin, seconds=seconds)

    def helm(self, *arguments: str, seconds: float = CALL_SECONDS) -> str:
        return run(["helm", "--namespace", self.namespace, *arguments], seconds=seconds)

    def get(self, *arguments: str) -> Any:
        """``kubectl get`` as data."""
        return json.loads(self.kubectl("get", *arguments, "--output", "json"))

    def items(self, *arguments: str) -> list[Manifest]:
        """The objects of a ``kubectl get`` of several."""
        found: list[Manifest] = self.get(*arguments)["items"]
        return found

    def apply(self, *manifests: Manifest) -> None:
        listed = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        self.kubectl("apply", "--filename", "-", stdin=json.dumps(listed))

    def python(self, pod: str, program: str, *arguments: str, seconds: float = 60.0) -> str:
        """Standard output of a Python program in a running pod."""
        return self.kubectl("exec", pod, "--", "python", "-c", program, *arguments, seconds=seconds)

    def serves(self, group_version: str) -> bool:
        """Whether the API server knows an API group and version."""
        return group_version in run(["kubectl", "api-versions"]).split()

    def make_namespace(self, labels: dict[str, str]) -> None:
        metadata = {"name": self.namespace, "labels": labels}
        run(
            ["kubectl", "apply", "--filename", "-"],
            stdin=json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}),
        )

    def delete_namespace(self) -> None:
        """And everything in it; returns when it is gone."""
        run(["kubectl", "delete", "namespace", self.namespace, "--ignore-not-found", "--timeout=300s"], seconds=330)


def is_ready(pod: Manifest) -> bool:
    """Whether a pod is ready and not on its way out."""
    conditions = pod.get("status", {}).get("conditions", [])
    return "deletionTimestamp" not in pod["metadata"] and any(
        condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions
    )
