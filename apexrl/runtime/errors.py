"""What can go wrong in a process beyond its configuration, and the exit code that says so."""

from __future__ import annotations

from apexrl.types import Fenced

__all__ = ["EXIT_CONFIG", "EXIT_FAILURE", "EXIT_FENCED", "ArchitectureError", "CheckpointError", "Fenced"]

EXIT_FAILURE = 1
EXIT_CONFIG = 2
EXIT_FENCED = 75


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read. What was saved before is untouched."""


class ArchitectureError(CheckpointError):
    """A checkpoint belongs to other networks or another optimizer; the message names what differs. Exit code 2."""
