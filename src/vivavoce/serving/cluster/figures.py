"""What the pages of figures show of all replicas together."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from vivavoce.errors import need
from vivavoce.serving.app import Figures

FRESH = 1.0  # seconds for which an answer is shown again: a page for everybody must not ask all replicas each time
STATES = ("ok", "stopping", "failed")
Told = Mapping[str, Mapping[str, Any]]  # by replica, what `Replica.look` tells


class ClusterFigures(Figures):
    """`/health`, `/v1/queue`, `/v1/sessions` and `/metrics` over all replicas that `ask()` hears from."""

    def __init__(self, ask: Callable[[], Awaitable[Told]]):
        self.ask = ask
        self._asked: tuple[float, asyncio.Future[Told]] | None = None

    async def _told(self) -> Told:
        now = time.monotonic()
        if self._asked is None or now - self._asked[0] > FRESH:
            self._asked = now, asyncio.ensure_future(self.ask())
        return await asyncio.shield(self._asked[1])

    async def health(self) -> dict[str, Any]:
        """As one server's, with `replicas`: the same of each. It works while one replica does."""
        return health_of({name: told["health"] for name, told in (await self._told()).items()})

    async def queue(self) -> dict[str, Any]:
        """As one server's: a newcomer goes where the wait is the shortest."""
        return queue_of([told["queue"] for told in (await self._told()).values()])

    async def sessions(self) -> dict[str, Any]:
        """As one server's, each with its `replica`."""
        told = await self._told()
        return {"data": [{**row, "replica": name} for name, each in told.items() for row in each["sessions"]]}

    async def metrics(self) -> bytes:
        """Each replica's, labelled with its name."""
        return metrics_of({name: told["metrics"].decode() for name, told in (await self._told()).items()})


def health_of(each: Told) -> dict[str, Any]:
    """The health of all: counts are summed, of times the worst is shown."""
    found: dict[str, Any] = {"status": min((h["status"] for h in each.values()), key=STATES.index)}
    found["model"] = next(iter(each.values()))["model"]
    for count in ("rows", "conversations", "queue", "frames", "late"):
        found[count] = sum(health[count] for health in each.values())
    for times in ("frame_ms", "last_steps_ms", "step_ms"):
        rows = [health[times] for health in each.values() if health[times]]
        found[times] = {at: max(row.get(at, 0.0) for row in rows) for at in rows[0]} if rows else None
    return {**found, "replicas": dict(each)}


def queue_of(each: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The queue of all."""
    rows = list(each)
    waits = [row["eta_seconds"] for row in rows if row["eta_seconds"] is not None]
    return {
        "waiting": sum(row["waiting"] for row in rows), "free": sum(row["free"] for row in rows),
        "eta_seconds": min(waits, default=None),
    }


def metrics_of(texts: Mapping[str, str]) -> bytes:
    """Prometheus' text of all, from each replica's: the same families, with a label `replica` more."""
    client = need("prometheus_client", "serve", "a server")
    parser = need("prometheus_client.parser", "serve", "a server")
    families: dict[str, Any] = {}
    for replica, text in texts.items():
        for family in parser.text_string_to_metric_families(text):
            whole = families.setdefault(family.name, type(family)(family.name, family.documentation, family.type))
            for sample in family.samples:
                whole.samples.append(sample._replace(labels={"replica": replica, **sample.labels}))

    class All:
        def collect(self) -> Iterable[Any]:
            return families.values()

    registry = client.CollectorRegistry(auto_describe=False)
    registry.register(All())
    return client.generate_latest(registry)
