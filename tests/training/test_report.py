"""The report holds all it shows: curves, players, spectrograms, the recipe; nothing from outside."""

import json
import re
import xml.etree.ElementTree as ET

import numpy
import pytest
import soundfile

from vivavoce.training import RunDirectory, write_report
from vivavoce.training.curves import chart
from vivavoce.training.progress import Progress, clock


def test_report_is_self_contained(tmp_path):
    run = RunDirectory.open(tmp_path / "a<b", {"system": "x", "training": []})
    values = {"phase": "p", "perplexity/1": 2.0, "bad": None}
    lines = [{**values, "step": n, "loss": 1 / n, "perplexity/0": n} for n in (1, 2)]
    lines.append({"phase": "p", "step": 2, "evaluate/loss": 0.4, "seconds": 65.0})
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder = run.samples("p", 2)
    folder.mkdir(parents=True)
    soundfile.write(folder / "0-x.wav", numpy.zeros(100), 16000)
    page = write_report(run).read_text()
    assert "a&lt;b" in page and "<b" not in page.split("<style>")[0].replace("<body", "")
    assert page.count("<svg") == 2 and "Codebook health" in page and "evaluate/loss" in page
    assert page.count("<audio") == 1 and "class=spectrogram" in page and "system: x" in page and "1:05" in page
    assert not re.search(r"(src|href)='(?!data:)", page)


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [1e-5, 10.0], [-3.0, 5.0, 2.0], [1e9] * 3000])
def test_charts_of_any_values_are_well_formed_and_inside(values):
    svg = chart("a & b", {"one": (range(len(values)), values), "two": ([0], [values[0]])})
    tree = ET.fromstring(svg)
    points = [p for line in tree.iter("polyline") for p in line.get("points").split()]
    assert len(points) <= 1200
    for point in points:
        x, y = map(float, point.split(","))
        assert 0 <= x <= 360 and 20 <= y <= 180


def test_plain_progress_says_rate_time_and_losses(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("vivavoce.training.progress.time.monotonic", lambda: now[0])
    bar = Progress("listen", 100)
    for step in range(1, 101):
        now[0] += 1.0
        bar.update(step, step / 100, {"loss": 0.5}, 0.413 if step > 20 else None)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5  # every 20 s
    assert lines[0].startswith("listen: step 20/100  1.00 steps/s  1:20 left  loss 0.5")
    assert lines[1].startswith("listen: step 40/100  1.00 steps/s  1:00 left  MFU 41%  loss 0.5")
    assert clock(3725) == "1:02:05"
