"""The golden manifests of every scenario, and their pods, for tests of what they say."""

from __future__ import annotations

import pytest
from chart_scene import SCENARIOS, golden, pods

MANIFESTS = {scenario: golden(scenario) for scenario in SCENARIOS}
#: (scenario, pod's name, its metadata, its spec)
PODS = [(scenario, *pod) for scenario, manifests in MANIFESTS.items() for pod in pods(manifests)]
POD_IDS = [f"{scenario}-{name}" for scenario, name, *_ in PODS]

every_pod = pytest.mark.parametrize(("scenario", "name", "metadata", "spec"), PODS, ids=POD_IDS)
