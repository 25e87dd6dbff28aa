"""People who talk, and clients that misbehave: what is measured is there, and nobody's row is lost."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from serving.waiting import nobody_left
from vivavoce.cli import app
from vivavoce.errors import RequestError
from vivavoce.serving import bench, load
from vivavoce.serving.load_links import MoshiLink
from vivavoce.serving.opus import samples_of_packet

QUESTION = str(Path(__file__).parents[2] / "examples/recordings/seven-george.wav")


def test_what_people_notice(serve):
    port, _ = serve("tone", dialects=("live",), rows=3)
    plan = load.Plan(f"http://127.0.0.1:{port}", "live", "tone", 3, 4.0, 0.2, [QUESTION], (0.5, 0.6))
    found = asyncio.run(load.run(plan))
    assert found["failed_clients"] == 0 and found["errors"] == []
    assert found["answered"] >= 3 and 200 < found["turn_gap_ms"]["p50"] < 1500  # tone answers 320 ms after the sound
    assert found["added_ms"]["count"] == found["round_trip_ms"]["count"] > 60
    assert found["turn_gaps_ms"] == {"seven-george.wav": found["turn_gap_ms"]}
    assert 0 < found["added_ms"]["p50"] <= found["round_trip_ms"]["p50"]
    assert found["added_cold_ms"]["count"] == 3 * load.COLD
    assert found["added_warm_ms"]["count"] == found["added_ms"]["count"] - 3 * load.COLD
    assert set(found["stages_ms"]) == set(load.STAGES)
    assert 0 <= found["stages_ms"]["wait"]["p50"] < 100 and found["stages_ms"]["step"]["p50"] > 0
    assert 0 < found["clients_cpu"] < 2


def test_opus_is_made_once_and_heard_by_who_asks(serve):
    port, _ = serve("tone", dialects=("moshi",), rows=2)
    plan = load.Plan(f"http://127.0.0.1:{port}", "moshi", "tone", 2, 3.0, 0.2, [QUESTION], (0.5, 0.6))
    found = asyncio.run(load.run(plan))
    assert found["failed_clients"] == 0 and found["answered"] >= 2 and 200 < found["turn_gap_ms"]["p50"] < 1500
    assert found["added_ms"]["count"] > 40 and found["stages_ms"]["encode"]["p50"] > 0
    made = MoshiLink.made(np.zeros(3000, np.float32))
    assert [len(packets) for packets in made] == [2, 2] and all(samples_of_packet(p) == 1920 for p in made[0])


def test_hostile_clients_cost_no_row_and_nobody_elses_sound(serve):
    port, server = serve("echo", dialects=("live",), rows=8, grace=1.0)
    plan = load.Plan(f"http://127.0.0.1:{port}", "live", "echo", 2, 4.0, 0.1, [QUESTION], (0.4, 0.5), hostile=4)
    found = asyncio.run(load.run(plan))
    assert found["failed_clients"] == 0 and found["pieces"] > 50
    assert set(found["hostile"]) == set(load.HOSTILE) and min(found["hostile"].values()) >= 1
    nobody_left(server)
    assert len(server.core.lockstep.free) == 8


@pytest.fixture(scope="module")
def found():
    """What the bench measures of `tone` with two people."""
    plan = load.Plan("", "live", "tone", 2, 2.0, 0.1, [QUESTION], (0.4, 0.5))
    return bench.bench_server("tone", plan, rows=2)


def test_the_bench_starts_a_server_and_says_what_it_found(found, tmp_path):
    assert found["rows"] == 2 and found["frames"] > 15 and found["left_behind"] == 0
    assert found["server_cpu"] > 0 and found["frame_ms"]["p99"] >= found["frame_ms"]["p50"] > 0
    told = bench.table(found)
    assert "2 clients in real time, live" in told and "added by the server" in told and "  hand over" in told
    assert 0 < found["opened_seconds"] < 120
    bench.picture([found], tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 5000


def test_the_command_keeps_what_was_measured(found, tmp_path, monkeypatch):
    asked = []

    def measured(model, plan, rows):
        asked.append((model, plan.clients, rows))
        return found

    monkeypatch.setattr(bench, "bench_server", measured)
    words = ["bench", "serve", "tone", "--clients", "1", "--clients", "2", "--question", QUESTION]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "kept")])
    assert done.exit_code == 0 and asked == [("tone", 1, 1), ("tone", 2, 2)]
    assert done.stdout.count("added by the server") == 2
    assert json.loads((tmp_path / "kept/serve.json").read_text()) == [found, found]
    assert (tmp_path / "kept/serve.png").stat().st_size > 5000


def test_an_unknown_dialect_is_named():
    with pytest.raises(RequestError, match="'morse'"):
        asyncio.run(load.run(load.Plan("http://127.0.0.1:1", "morse")))
    assert load.spread([]) is None
