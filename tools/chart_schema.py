"""The strict JSON schema of the chart's values. ``tools/chart.py`` writes it to ``values.schema.json``.

A key that is not here is refused, so a typo never installs something else than what was meant. Written in Python,
because components share most of their keys and JSON Schema cannot extend a closed object.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
SWITCH: Schema = {"type": "boolean"}
#: As Kubernetes writes amounts: 500m, 2, 1.5Gi.
QUANTITY: Schema = {"type": ["string", "number"], "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"}
#: As cert-manager writes it: 8760h.
DURATION: Schema = {"type": "string", "pattern": "^[0-9]+h$"}
#: Names of objects and hosts.
NAME: Schema = {"type": "string", "pattern": r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$"}
LABELS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
#: Parts of pods that Kubernetes itself checks.
OBJECTS: Schema = {"type": "array", "items": {"type": "object"}}
#: Sections of an experiment that ``config.set`` may change. ``local`` is not the chart's matter,
#: and ``security`` follows from values.
SECTIONS = ("env", "algorithm", "replay", "actor", "learner", "relay", "evaluator")


def closed(required: tuple[str, ...] = (), /, **properties: Schema) -> Schema:
    """An object that has these keys and no others."""
    schema: Schema = {"type": "object", "additionalProperties": False, "properties": properties}
    return {**schema, "required": list(required)} if required else schema


def integer(minimum: int, maximum: int | None = None) -> Schema:
    """A whole number within bounds."""
    bounds = {"minimum": minimum} | ({} if maximum is None else {"maximum": maximum})
    return {"type": "integer", **bounds}


def one_of(*values: str) -> Schema:
    """One of some words."""
    return {"enum": list(values)}


def image() -> Schema:
    """Image of a component."""
    return closed(
        ("repository",),
        repository={"type": "string", "minLength": 1},
        tag=TEXT,
        digest={"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
    )


def volume(**more: Schema) -> Schema:
    """A volume of a component."""
    return closed(
        (),
        enabled=SWITCH,
        size=QUANTITY,
        storageClass=NAME,
        accessMode=one_of("ReadWriteOncePod", "ReadWriteOnce"),
        deleteWithRelease=SWITCH,
        **more,
    )


def component(**own: Schema) -> Schema:
    """What every component has, and what only this one has."""
    amounts = {"type": "object", "additionalProperties": QUANTITY}
    return closed(
        (),
        **own,
        resources=closed((), requests=amounts, limits=amounts),
        terminationGracePeriodSeconds=integer(1, 3600),
        priorityClassName=NAME,
        nodeSelector=LABELS,
        tolerations=OBJECTS,
        affinity=closed(
            (),
            nodeAffinity={"type": "object"},
            podAffinity={"type": "object"},
            podAntiAffinity={"type": "object"},
        ),
        podLabels=LABELS,
        podAnnotations=LABELS,
        extraEnv=OBJECTS,
        extraVolumes=OBJECTS,
        extraVolumeMounts=OBJECTS,
    )


def values_schema() -> Schema:
    """The schema of all values."""
    experiment = closed((), name=TEXT, seed=integer(0), **{name: {"type": "object"} for name in SECTIONS})
    config: Schema = {
        "type": ["string", "object"],
        "additionalProperties": False,
        "properties": {"preset": TEXT, "set": experiment},
    }
    share_or_number: Schema = {"type": ["string", "integer"], "pattern": "^[0-9]+%?$", "minimum": 1}
    # The templates refuse `replicas` of learner and replay, with a reason.
    refused: Schema = {}
    schema = closed(
        (),
        **{
            "global": {"type": "object"},
            "fullnameOverride": {"type": "string", "pattern": "^([a-z]([-a-z0-9]*[a-z0-9])?)?$", "maxLength": 40},
            "clusterDomain": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"},
            "commonLabels": LABELS,
            "image": closed(
                (),
                registry={"type": "string", "pattern": "^([^/].*[^/])?$"},
                tag=TEXT,
                pullPolicy=one_of("Always", "IfNotPresent", "Never"),
                pullSecrets={"type": "array", "items": {"type": "string", "minLength": 1}},
            ),
            "config": config,
            "actor": component(
                replicas=integer(0, 10_000),
                replicasPolicy=one_of("initial", "managed", "external"),
                autoscaling=closed(
                    (),
                    enabled=SWITCH,
                    minReplicas=integer(1, 10_000),
                    maxReplicas=integer(1, 10_000),
                    ratio={"type": "number", "exclusiveMinimum": 0},
                    prometheus={"type": "string", "pattern": "^https?://"},
                ),
                spot=one_of("none", "gke", "eks", "aks", "karpenter"),
                image=image(),
                maxUnavailable=share_or_number,
            ),
            "replay": component(shards=integer(1, 64), replicas=refused, persistence=volume(), image=image()),
            "learner": component(
                replicas=refused,
                gpu=closed(
                    (),
                    enabled=SWITCH,
                    resource={"type": "string", "pattern": "^[a-z0-9.-]+/[a-zA-Z0-9._-]+$"},
                    nodeSelector=LABELS,
                    tolerations=OBJECTS,
                    runtimeClassName=NAME,
                ),
                run=TEXT,
                discardOtherRun=SWITCH,
                persistence=volume(existingClaim=NAME),
                sharedMemory=QUANTITY,
                image=image(),
            ),
            "evaluator": component(enabled=SWITCH),
            "relay": component(replicas=integer(0, 64)),
            "security": closed(
                (),
                mode=one_of("none", "tls", "mtls"),
                certManager=closed(
                    (),
                    issuer=NAME,
                    issuerKind=one_of("Issuer", "ClusterIssuer"),
                    duration=DURATION,
                    renewBefore=DURATION,
                ),
                secrets=closed((), replay=NAME, learner=NAME, relay=NAME, actor=NAME, evaluator=NAME, operator=NAME),
                tokenSecret=NAME,
            ),
            "networkPolicy": closed(
                (),
                enabled=SWITCH,
                dns=closed((), namespaceLabels=LABELS, podLabels=LABELS),
                monitoringNamespaceLabels=LABELS,
                extraIngress=OBJECTS,
                extraEgress=OBJECTS,
            ),
            "monitoring": closed(
                (),
                annotations=SWITCH,
                podMonitor=closed(
                    (), enabled=SWITCH, labels=LABELS, interval={"type": "string", "pattern": "^[0-9]+(ms|s|m)$"}
                ),
                rules=closed((), enabled=SWITCH, labels=LABELS, runbookBase={"type": "string", "pattern": "^(.*/)?$"}),
                dashboards=closed((), enabled=SWITCH, labels=LABELS, annotations=LABELS),
            ),
            "tests": closed((), enabled=SWITCH),
        },
    )
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Values of the chart apex", **schema}
