"""Telemetry: Prometheus metrics, logs, and the record of an experiment."""
