"""Tokenizing on a cluster: the store is that of one process, whoever ends in the middle."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import vivavoce
from small_codecs import small
from vivavoce.codecs import save_codec
from vivavoce.data.clips import Clip
from vivavoce.data.corpora import open_corpus
from vivavoce.data.tokenize import Done, batches, tokenize
from vivavoce.data.workers import TRIES, Crew, Spread
from vivavoce.errors import DataError


def test_real_workers_of_which_one_is_killed(tmp_path):
    save_codec(small("causal"), tmp_path / "codec")
    folder, rng = tmp_path / "corpus", np.random.default_rng(0)
    folder.mkdir()
    for number in range(40):
        wave = 0.1 * rng.standard_normal((1, 4000 + 100 * number)).astype(np.float32)
        vivavoce.write(folder / f"{number:02d}.wav", vivavoce.Audio(wave, 8000))
    (folder / "07.wav").write_bytes((folder / "07.wav").read_bytes()[:100])
    script = Path(__file__).with_name("ray_tokenize.py")
    command = [sys.executable, str(script), str(tmp_path / "codec"), str(folder), str(tmp_path / "spread")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ}, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["lost"] == 1 and said["batches"] > 10
    assert [name for name, _ in said["skipped"]] == ["07"] and "truncated" in said["skipped"][0][1]
    clips = open_corpus(folder, license="CC0-1.0", source="noise").clips
    assert said["rows"] == len(clips) - 1 == 39
    codec = vivavoce.load_tokenizer(tmp_path / "codec")
    tokenize(clips, {"voice": codec}, tmp_path / "alone", {"voice": str(tmp_path / "codec")}, 1.0, 7, quiet=True)
    names = sorted(path.relative_to(tmp_path / "alone") for path in (tmp_path / "alone").rglob("*.*"))
    assert len(names) == 9  # six shards, two files of the index, store.json
    assert names == sorted(path.relative_to(tmp_path / "spread") for path in (tmp_path / "spread").rglob("*.*"))
    for name in names:
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "spread" / name).read_bytes(), name


class Died(Exception):
    """A worker's process has ended."""


class Failed(Exception):
    """A worker has raised something."""

    cause = DataError("it is another tokenizer")


class Reference:
    """To a batch at a worker."""

    def __init__(self, actor, batch):
        self.actor, self.batch = actor, batch


class Actor:
    """A worker's handle."""

    def __init__(self):
        self.alive = True
        self.encode = SimpleNamespace(remote=lambda batch: Reference(self, batch))
        self.load = SimpleNamespace(remote=lambda: None)


class Ray:
    """What `Spread` asks of Ray, in this process: workers that end over clips called `poison`, and answer in any
    order."""

    exceptions = SimpleNamespace(RayActorError=Died, RayTaskError=Failed, OutOfMemoryError=MemoryError)

    def __init__(self, fault=None):
        self.hired, self.seen, self.fault, self.chance = 0, [], fault, np.random.default_rng(0)

    def cluster_resources(self):
        return {"CPU": 3.0}

    def remote(self, **options):
        return lambda kind: SimpleNamespace(remote=self.hire)

    def hire(self, *arguments):
        self.hired += 1
        return Actor()

    def wait(self, references, num_returns):
        return [references[int(self.chance.integers(len(references)))]], []

    def get(self, reference):
        if isinstance(reference, list):
            if self.fault is not None:
                raise self.fault
            return None
        if any(clip.id.startswith("poison") for clip in reference.batch):
            reference.actor.alive = False
        if not reference.actor.alive:
            raise Died
        self.seen += [clip.id for clip in reference.batch]
        return Done(reference.batch, [clip.id for clip in reference.batch], [])

    def kill(self, actor, no_restart):
        actor.alive = False


def clip(name):
    return Clip(name, f"{name}.wav", 1.0, "CC0-1.0", "noise")


@pytest.mark.parametrize("poison", [[], ["poison-07"], ["poison-00", "poison-07", "poison-11", "poison-39"]])
def test_what_ends_workers_is_found_and_the_order_is_kept(poison):
    names = [f"c{number:02d}" for number in range(40)]
    names = [next((p for p in poison if p[-2:] == name[-2:]), name) for name in names]
    ray = Ray()
    spread = Spread(ray, Crew({"voice": "x"}), {})
    done = list(spread(batches([clip(name) for name in names], 4.0)))
    assert [row for each in done for row in each.rows] == [name for name in names if name not in poison]
    skipped = {name: why for each in done for name, why in each.skipped}
    assert list(skipped) == poison and all("2 workers have ended over it" in why for why in skipped.values())
    assert spread.lost == ray.hired - 3 and TRIES * len(poison) <= spread.lost <= 2 * TRIES * len(poison)
    assert sorted(ray.seen) == sorted(set(names) - set(poison))  # nothing is done twice


def test_workers_that_cannot_begin():
    with pytest.raises(DataError, match="another tokenizer"):
        list(Spread(Ray(Failed()), Crew({"voice": "x"}), {})(batches([clip("a")])))
    with pytest.raises(DataError, match="ended as it began"):
        list(Spread(Ray(Died("gone")), Crew({"voice": "x"}), {})(batches([clip("a")])))
    with pytest.raises(ValueError, match="no room for a worker of 4"):
        list(Spread(Ray(), Crew({"voice": "x"}, cpus=4.0), {})(batches([clip("a")])))
