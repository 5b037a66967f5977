"""Measurements of the whole system; see docs/benchmarks.md. Results lie in ``results/``, one JSON file per subject."""
