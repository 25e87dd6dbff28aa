"""Benchmarks: loader -> verb -> artefact -> scorer -> aggregator."""

from vivavoce.evaluation.harness import TASKS, Item, Result, Scored, Task, evaluate, task
from vivavoce.evaluation.statistics import Estimate, difference, estimate

__all__ = ["TASKS", "Estimate", "Item", "Result", "Scored", "Task", "difference", "estimate", "evaluate", "task"]
