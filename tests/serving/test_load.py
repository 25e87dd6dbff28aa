"""People who talk, and clients that misbehave: what is measured is there, and nobody's row is lost."""

import asyncio
import time
from pathlib import Path

import pytest

from vivavoce.errors import RequestError
from vivavoce.serving import bench, load

QUESTION = str(Path(__file__).parents[2] / "examples/recordings/seven-george.wav")


def test_what_people_notice(serve):
    port, _ = serve("tone", dialects=("live",), rows=3)
    plan = load.Plan(f"http://127.0.0.1:{port}", "live", "tone", 3, 4.0, 0.2, [QUESTION], (0.5, 0.6))
    found = asyncio.run(load.run(plan))
    assert found["failed_clients"] == 0 and found["errors"] == []
    assert found["answered"] >= 3 and 200 < found["turn_gap_ms"]["p50"] < 1500  # tone answers 320 ms after the sound
    assert found["added_ms"]["count"] == found["round_trip_ms"]["count"] > 60
    assert 0 < found["added_ms"]["p50"] <= found["round_trip_ms"]["p50"]
    assert 0 < found["clients_cpu"] < 2


def test_hostile_clients_cost_no_row_and_nobody_elses_sound(serve):
    port, server = serve("echo", dialects=("live",), rows=8, grace=1.0)
    plan = load.Plan(f"http://127.0.0.1:{port}", "live", "echo", 2, 4.0, 0.1, [QUESTION], (0.4, 0.5), hostile=4)
    found = asyncio.run(load.run(plan))
    assert found["failed_clients"] == 0 and found["pieces"] > 50
    assert set(found["hostile"]) == set(load.HOSTILE) and min(found["hostile"].values()) >= 1
    end = time.monotonic() + 15
    while server.core.live and time.monotonic() < end:
        time.sleep(0.1)
    assert not server.core.live and len(server.core.lockstep.free) == 8


def test_the_bench_starts_a_server_and_says_what_it_found(tmp_path):
    plan = load.Plan("", "live", "tone", 2, 2.0, 0.1, [QUESTION], (0.4, 0.5))
    found = bench.bench_server("tone", plan, rows=2)
    assert found["rows"] == 2 and found["frames"] > 15 and found["left_behind"] == 0
    assert found["server_cpu"] > 0 and found["frame_ms"]["p99"] >= found["frame_ms"]["p50"] > 0
    told = bench.table(found)
    assert "2 clients in real time, live" in told and "added by the server" in told
    bench.picture([found], tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 5000


def test_an_unknown_dialect_is_named():
    with pytest.raises(RequestError, match="'morse'"):
        asyncio.run(load.run(load.Plan("http://127.0.0.1:1", "morse")))
    assert load.spread([]) is None
