"""The tasks that models are adapted to. `TASKS` holds every one by name."""

from __future__ import annotations

from bench.tasks.base import TASKS, Outputs, Rates, Task, find, fingerprint_of, register

from bench.tasks import classification, language  # isort: skip  (tasks register themselves)

__all__ = ["TASKS", "Outputs", "Rates", "Task", "classification", "find", "fingerprint_of", "language", "register"]
