"""How many replicas there should be, by their free rows. (Serve sends this module by value to its controller.)"""

import math
from collections.abc import Mapping
from typing import Any


def replicas_for(taken: float, rows: float, spare: float) -> int:
    """The fewest replicas of `rows` each whose rows are at most `1 - spare` taken; at least 1."""
    return max(1, math.ceil(taken / (rows * (1 - spare)) - 1e-9))


class ByFreeRows:
    """An autoscaling policy of Ray Serve: as many replicas as leave the share `spare` of all rows free.

    Serve's own, by requests, would count connections: those that wait, look on or ask for figures have no row, and a
    conversation whose connection was lost has one.
    """

    def __init__(self, spare: float = 0.25):
        self.spare = spare

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """(replicas, nothing to remember), from what each replica tells of its rows
        (`Replica.record_autoscaling_stats`); bounds and delays are Serve's."""
        told: Mapping[str, Mapping[Any, float]] = context.aggregated_metrics or {}
        rows = [count for count in told.get("rows", {}).values() if count > 0]
        if not rows:  # nobody has told anything yet
            return context.target_num_replicas, {}
        taken = sum(told.get("taken", {}).values()) + sum(told.get("waiting", {}).values())
        return replicas_for(taken, sum(rows) / len(rows), self.spare), {}
