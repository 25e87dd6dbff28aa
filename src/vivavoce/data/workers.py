"""Tokenizing on a Ray cluster: batches go to workers that hold the tokenizers, rows come back in the corpus's order.

A worker that ends (its machine is taken away, its memory is full) is replaced and its batch done again; a batch that
outlasts several workers is cut into single clips, and a clip that does so alone is skipped and reported. So the store
is the one that a single process makes.
"""

from __future__ import annotations

import os
import platform
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vivavoce.data.clips import Clip
from vivavoce.data.tokenize import Done, encode, spec_of
from vivavoce.errors import DataError, RequestError, VivavoceError
from vivavoce.ray_cluster import connected

PURPOSE = "tokenizing on a Ray cluster"
TRIES = 2  # workers that may end over a batch before it is cut, and over a clip before it is skipped
AHEAD = 3  # batches for each worker that are on their way, so that none waits for the next
WAITING = 8  # batches for each worker that may be ready before one that comes earlier in the corpus


@dataclass(frozen=True)
class Crew:
    """Who does the work: how many `workers` (None: as many as the cluster has room for), the `cpus` and `gpus` that
    each takes, as Ray counts, and what each loads: `models`, stream -> tokenizer, by `options` of `load_tokenizer`."""

    models: Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)
    workers: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0


def cluster(address: str | None = None) -> AbstractContextManager[Any]:
    """Ray for tokenizing, as `connected` has it. Its workers are what this machine is for meanwhile: Ray would let all
    else go first."""
    return connected(address, PURPOSE, {"RAY_worker_niceness": "0"})


class Worker:
    """What runs on the cluster: the tokenizers, loaded where it runs."""

    def __init__(self, models: Mapping[str, str], options: Mapping[str, Any], specs: Mapping[str, Any]):
        self.models, self.options, self.specs = models, options, specs
        self.tokenizers: dict[str, Any] = {}

    def load(self) -> None:
        """The tokenizers. Raises `DataError` where they are not those that the work began with."""
        import torch

        from vivavoce.systems.devices import placed
        from vivavoce.systems.tokenizers import load_tokenizer

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))  # Ray sets it to the worker's share
        rest = dict(self.options)
        place = placed(rest.pop("device", "auto"), rest.pop("dtype", None))
        found = {name: load_tokenizer(model, **rest, **place) for name, model in self.models.items()}
        for name, tokenizer in found.items():
            if spec_of(tokenizer, "") != replace(self.specs[name], tokenizer=""):
                where = platform.node()
                raise DataError(f"'{self.models[name]}' is another tokenizer on {where} than where the work began")
        self.tokenizers = found

    def encode(self, batch: list[Clip]) -> Done:
        """The rows of a batch."""
        if not self.tokenizers:
            self.load()
        return encode(batch, self.tokenizers)


@dataclass
class _Task:
    """A batch or a part of one: where it stands in the corpus; how many workers have ended over it; `alone`: it runs on
    a worker that has nothing else to do, so that it is known what ends it."""

    place: tuple[int, int]
    batch: list[Clip]
    ended: int = 0
    alone: bool = False


class Spread:
    """`work` for `vivavoce.data.tokenize.tokenize`: its batches by the workers of a crew. specs: of the streams, which
    the workers' tokenizers must have."""

    def __init__(self, ray: Any, crew: Crew, specs: Mapping[str, Any]):
        self.ray, self.crew, self.specs = ray, crew, dict(specs)
        self.models = {name: _absolute(place) for name, place in crew.models.items()}
        self.actors: list[Any] = []
        self.lost = 0  # workers that have ended before their time

    def __call__(self, batches: Iterable[list[Clip]]) -> Iterator[Done]:
        """The batches with their rows, in order. Raises what a worker raises that cannot begin."""
        self.actors = [self._hire() for _ in range(self.crew.workers or self._room())]
        try:
            self.ray.get([actor.load.remote() for actor in self.actors])
            yield from self._work(batches)
        except self.ray.exceptions.RayTaskError as error:
            raise _own(error.cause) from error
        except self.ray.exceptions.RayActorError as error:
            raise DataError(f"a worker ended as it began: {str(error).splitlines()[0]}") from error
        finally:
            for actor in self.actors:
                self._dismiss(actor)

    def _room(self) -> int:
        there = self.ray.cluster_resources()
        shares = {"CPU": self.crew.cpus, "GPU": self.crew.gpus}
        rooms = [there.get(what, 0) / share for what, share in shares.items() if share]
        if rooms and int(min(rooms)) < 1:
            raise RequestError(f"the cluster has no room for a worker of {self.crew.cpus} CPUs, {self.crew.gpus} GPUs")
        return int(min(rooms)) if rooms else 1

    def _hire(self) -> Any:
        remote = self.ray.remote(num_cpus=self.crew.cpus, num_gpus=self.crew.gpus, max_restarts=0)(Worker)
        return remote.remote(self.models, dict(self.crew.options), self.specs)

    def _dismiss(self, actor: Any) -> None:
        with suppress(Exception):
            self.ray.kill(actor, no_restart=True)

    def _work(self, batches: Iterable[list[Clip]]) -> Iterator[Done]:
        fresh = (_Task((number, 0), [_placed(clip) for clip in batch]) for number, batch in enumerate(batches))
        again: deque[_Task] = deque()
        running: dict[Any, tuple[_Task, Any]] = {}
        ready: dict[tuple[int, int], Done] = {}
        parts: dict[int, int] = {}  # of batches that have been cut
        following = 0
        while True:
            while again or len(ready) + len(running) < WAITING * len(self.actors):
                actor = self._idlest(running, 1 if again else AHEAD)
                task = None if actor is None else again.popleft() if again else next(fresh, None)
                if task is None:
                    break
                running[actor.encode.remote(task.batch)] = (task, actor)
            if not running:
                return
            (reference,), _ = self.ray.wait(list(running), num_returns=1)
            task, actor = running.pop(reference)
            try:
                ready[task.place] = self.ray.get(reference)
            except (self.ray.exceptions.RayActorError, self.ray.exceptions.OutOfMemoryError):
                self._replace(actor)
                again += self._once_more(task, ready, parts)
            while all((following, part) in ready for part in range(parts.get(following, 1))):
                for part in range(parts.pop(following, 1)):
                    yield ready.pop((following, part))
                following += 1

    def _idlest(self, running: Mapping[Any, tuple[_Task, Any]], most: int) -> Any:
        """The worker with the least to do, of those with less than `most`; None where there is none."""
        load = dict.fromkeys(self.actors, 0)
        for task, actor in running.values():
            if actor in load:
                load[actor] += AHEAD if task.alone else 1
        least = min(load, key=lambda actor: load[actor])
        return least if load[least] < most else None

    @staticmethod
    def _once_more(task: _Task, ready: dict[tuple[int, int], Done], parts: dict[int, int]) -> list[_Task]:
        """What to do of a task whose worker has ended."""
        ended = task.ended + 1
        if ended < TRIES:
            return [replace(task, ended=ended, alone=True)]
        number, _ = task.place
        if len(task.batch) > 1:
            parts[number] = len(task.batch)
            return [_Task((number, part), [clip], alone=True) for part, clip in enumerate(task.batch)]
        ready[task.place] = Done(task.batch, [], [(task.batch[0].id, f"{ended} workers have ended over it")])
        return []

    def _replace(self, actor: Any) -> None:
        """Another worker for one that has ended, of which several tasks may tell."""
        if actor in self.actors:
            self.lost += 1
            self._dismiss(actor)
            self.actors[self.actors.index(actor)] = self._hire()


def _placed(clip: Clip) -> Clip:
    """A clip whose audio any process finds that sees the same files."""
    return replace(clip, audio=str(clip.path.absolute()), root="")


def _absolute(place: str) -> str:
    return str(Path(place).absolute()) if Path(place).exists() else place


def _own(error: BaseException) -> BaseException:
    """What to raise for what a worker raised."""
    if isinstance(error, VivavoceError):
        return error
    return DataError(f"a worker failed: {str(error).strip().splitlines()[-1] if str(error).strip() else error!r}")
