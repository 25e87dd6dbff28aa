"""Timing of steps by part, with parts whose cost is known."""

from types import SimpleNamespace

import numpy as np
import pytest

from evaluation.fake_model import FakeModel
from vivavoce.errors import RequestError
from vivavoce.evaluation import speed
from vivavoce.evaluation.speed import stopwatches, time_steps


class Watch:
    """A clock that goes on only as it is told to."""

    now = 0.0

    def perf_counter(self):
        return self.now


WATCH = Watch()


@pytest.fixture(autouse=True)
def watch(monkeypatch):
    monkeypatch.setattr(speed, "time", WATCH)


class Part:
    def __init__(self, seconds):
        self.seconds = seconds

    def step(self, *_):
        WATCH.now += self.seconds
        return "done"

    hear = columns = decode_step = step


class Model:
    """Each step calls four parts and takes 2 ms itself."""

    sample_rate = 16000
    verbs = frozenset({"duplex"})

    def __init__(self):
        stage = Part(0.001)
        stage.backbone = Part(0.004)
        self.system = SimpleNamespace(ear=Part(0.001), stage=stage, codec=Part(0.002))

    def duplex_rows(self, rows):
        assert rows == 3
        return SimpleNamespace(frame_size=1280, step=self.step)

    def step(self, frames, active):
        assert frames.shape == (3, 1280) and active.all()
        system = self.system
        system.ear.hear(), system.stage.columns(), system.stage.backbone.step(), system.codec.decode_step()
        WATCH.now += 0.002


def test_time_goes_where_it_is_spent():
    times = time_steps(Model(), rows=3, steps=20, warmup=2)
    told = times.to_json()
    assert told["rows"] == 3 and told["frame_ms"] == 80 and len(times.step_ms) == 20
    assert sum(told["parts_ms"].values()) == pytest.approx(times.step_ms.mean(), rel=0.01)
    expected = {"encoder": 1.0, "embedding": 1.0, "backbone": 4.0, "decoder": 2.0, "heads and rest": 2.0}
    assert told["parts_ms"] == pytest.approx(expected, abs=0.002) and told["median_ms"] == pytest.approx(10.0)
    assert times.real_time_factor == pytest.approx(np.median(times.step_ms) / 80)


def test_stopwatches_leave_no_trace():
    part = Part(0.5)
    with pytest.raises(ZeroDivisionError), stopwatches({"it": (part, "step")}) as spent:
        assert part.step() == "done" and spent["it"] > 0
        _ = 1 / 0
    assert "step" not in part.__dict__


def test_impossible_requests():
    with pytest.raises(RequestError, match="at least one"):
        time_steps(Model(), rows=0)
    model = FakeModel()
    model.verbs = {}
    with pytest.raises(RequestError, match="duplex"):
        time_steps(model)
