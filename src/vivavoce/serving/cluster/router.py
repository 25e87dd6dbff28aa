"""Ray Serve's router for conversations: a new one goes to the replica with the most free rows, and to the shortest
queue where there are none; what belongs to a replica goes there.

Each replica tells its free rows with Serve's routing statistics, some time after they have changed: what this router
has sent meanwhile is counted beside them. (Serve sends this module by value to its proxies: state of a process that
others need is in `running`.)
"""

import pickle
import random
import time
from collections import defaultdict
from typing import Any

from vivavoce.errors import need
from vivavoce.serving.cluster import PURPOSE, running
from vivavoce.serving.cluster.names import Wish, wish_of

need("ray", "ray", PURPOSE)
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica  # noqa: E402


class FreeRows(RequestRouter):
    """Chooses replicas by `routing_stats`: what is `vacant` at each (`Core.vacant`); at a new one, all its `rows`.

    lately: seconds after which a conversation that was sent to a replica is in that one's own statistics.
    """

    def initialize_state(self, **options: Any) -> None:
        """Called by Serve with the router's options: `lately`."""
        self.lately: float = options["lately"]
        self._sent: defaultdict[ReplicaID, dict[str, float]] = defaultdict(dict)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Replicas in the order in which they are to be asked."""
        wish = Wish()
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # who is refused by all is not asked again at once
            wish = wish_of_request(pending_request)
        owner = [r for r in candidate_replicas if r.replica_id.unique_id == wish.replica]
        if owner:
            return [owner]
        if not wish.row:
            return [candidate_replicas]  # Serve takes the one with the fewest requests
        random.shuffle(order := list(candidate_replicas))
        order.sort(key=self._left, reverse=True)
        return [[replica] for replica in order]

    def _left(self, replica: RunningReplica) -> float:
        """How many rows a replica has for newcomers; negative: how many wait."""
        now = time.monotonic()
        sent = self._sent[replica.replica_id]
        for request, when in list(sent.items()):
            if now - when > self.lately:
                del sent[request]
        told = replica.routing_stats.get("vacant")
        return (replica.replica_metadata.get("rows", 1) if told is None else told) - len(sent)

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """A request has been sent to a replica."""
        if wish_of_request(pending_request).row:
            self._sent[replica_id][pending_request.metadata.internal_request_id] = time.monotonic()

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """A request has ended."""
        self._sent[replica_id].pop(internal_request_id, None)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Serve tells which replicas there are, and what they tell of themselves."""
        super().update_replicas(replicas)
        there = {replica.replica_id for replica in replicas}
        for gone in [known for known in self._sent if known not in there]:
            del self._sent[gone]
        running.tell({replica.replica_id.unique_id: replica.routing_stats for replica in replicas})


def wish_of_request(pending_request: PendingRequest) -> Wish:
    """What a request is for. Serve's proxies send an ASGI scope, pickled; replicas say whom they call."""
    if "replica" in pending_request.kwargs:
        return Wish(replica=pending_request.kwargs["replica"])
    if not pending_request.args or not isinstance(pending_request.args[0], bytes):
        return Wish()
    try:
        return wish_of(pickle.loads(pending_request.args[0]).asgi_scope)
    except Exception:  # Serve's own form has changed: any replica will answer, though perhaps not the best
        return Wish(row=True)
