"""The report of a run: one HTML file with curves, samples to hear and see, and the health of the codebooks."""

import base64
import html
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vivavoce.training.curves import Curve, chart
from vivavoce.training.metrics import read_metrics
from vivavoce.training.progress import clock
from vivavoce.training.run_directory import RunDirectory, write_text

HEALTH = ("usage", "used", "perplexity")  # metric names with these words are shown as codebook health
MAX_SAMPLES = 24
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#1b1f24}
h1{font-size:1.5em}h2{margin-top:2em;border-bottom:1px solid #ddd}table{border-collapse:collapse}
td,th{padding:.2em .8em .2em 0;text-align:left}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(340px,1fr));gap:1em}
figure{margin:0}figcaption{font-size:.9em;color:#555}audio{width:100%}.spectrogram{width:100%;height:120px}img,svg{max-width:100%;height:auto}pre{background:#f6f8fa;padding:1em;overflow:auto}
"""


def write_report(run: RunDirectory) -> Path:
    """Write `report.html` from what the run directory holds. It needs no other file and no network."""
    with run.locked("report", patience=None):  # or an older view, drawn longer, would replace a newer one
        write_text(run.report, _page(run))
    return run.report


def _page(run: RunDirectory) -> str:
    lines = read_metrics(run.metrics)
    recipe = run.path / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8") if recipe.exists() else ""
    named = [phase["name"] for phase in (yaml.safe_load(text) or {}).get("training", [])]
    logged = list(dict.fromkeys(line["phase"] for line in lines))
    phases = [name for name in named if name in logged] + [name for name in logged if name not in named]
    parts = [f"<h1>{html.escape(run.path.name)}</h1>", _summary(run, lines, phases)]
    for phase in phases:
        mine = [line for line in lines if line["phase"] == phase]
        curves = series(mine)
        health = {k: v for k, v in curves.items() if any(word in k for word in HEALTH)}
        parts += [f"<h2>{html.escape(phase)}</h2>", _figures({k: v for k, v in curves.items() if k not in health})]
        if health:
            parts += ["<h3>Codebook health</h3>", _figures(health)]
        parts.append(_samples(run, phase))
    if text:
        parts.append(f"<h2>Recipe</h2><pre>{html.escape(text)}</pre>")
    page = f"<!doctype html><meta charset=utf-8><title>{html.escape(run.path.name)}</title><style>{STYLE}</style>"
    return page + "\n".join(parts)


def series(lines: list[dict[str, Any]]) -> Mapping[str, Curve]:
    """Metric name -> (steps, values), in the order of appearance; `evaluate/x` stays apart from `x`."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for line in lines:
        for key, value in line.items():
            if key not in ("phase", "step", "seconds") and value is not None:
                steps, values = found.setdefault(key, ([], []))
                steps.append(line["step"])
                values.append(value)
    return found


def _summary(run: RunDirectory, lines: list[dict[str, Any]], phases: list[str]) -> str:
    rows = []
    for phase in phases:
        mine = [line for line in lines if line["phase"] == phase]
        seconds = max((line.get("seconds", 0.0) for line in mine), default=0.0)
        last: dict[str, float] = {}
        for line in mine:
            last.update({k: v for k, v in line.items() if k == "loss" or k.startswith("evaluate/")})
        used = [line["mfu"] for line in mine if line.get("mfu") is not None]
        share = f"{100 * sum(used) / len(used):.0f}%" if used else ""
        figures = ", ".join(f"{k.removeprefix('evaluate/')} {v:.4g}" for k, v in last.items() if v is not None)
        rows.append(f"<tr><td>{html.escape(phase)}<td>{mine[-1]['step']}<td>{clock(seconds)}"
                    f"<td>{share}<td>{html.escape(figures)}")
    table = "<table><tr><th>phase<th>steps<th>time<th>MFU<th>last figures" + "".join(rows) + "</table>"
    notes = run.path / "code.json"
    if notes.exists():
        code: Mapping[str, Any] = json.loads(notes.read_text())[-1]
        shown = ("vivavoce", "commit", "torch", "machine", "threads")
        facts = ", ".join(f"{key} {code[key]}" for key in shown if code.get(key))
        table += f"<p>{html.escape(facts)}"
    return table


def _figures(curves: Mapping[str, Curve]) -> str:
    """Levels ("perplexity/0", "perplexity/1") share their axes; so do a loss and its "evaluate/"."""
    groups: dict[str, dict[str, Curve]] = {}
    for name, curve in curves.items():
        plain = re.sub(r"/\d+(?=/|$)", "", name)
        if plain == name:
            plain = name.removeprefix("evaluate/")
        groups.setdefault(plain, {})[name.removeprefix(f"{plain}/")] = curve
    return "<div class=grid>" + "".join(f"<figure>{chart(k, v)}</figure>" for k, v in groups.items()) + "</div>"


def _samples(run: RunDirectory, phase: str) -> str:
    root = run.path / "samples" / phase
    folders = sorted(root.iterdir()) if root.is_dir() else []
    if not folders:
        return ""
    shown = []
    for path in sorted(folders[-1].iterdir())[:MAX_SAMPLES]:
        data = base64.b64encode(path.read_bytes()).decode()
        caption = f"<figcaption>{html.escape(path.stem)}</figcaption>"
        if path.suffix == ".wav":
            player = f"<audio controls src='data:audio/wav;base64,{data}'></audio>"
            shown.append(f"<figure>{_spectrogram(path)}{player}{caption}</figure>")
        elif path.suffix == ".png":
            shown.append(f"<figure><img src='data:image/png;base64,{data}'>{caption}</figure>")
    title = f"<h3>Samples at {html.escape(folders[-1].name)}</h3>"
    return title + "<div class=grid>" + "".join(shown) + "</div>"


def _spectrogram(path: Path) -> str:
    """An image of the levels from 0 Hz to half the rate, 80 dB from black to white."""
    import numpy
    import soundfile
    from matplotlib.image import imsave

    samples, _ = soundfile.read(path, always_2d=True, dtype="float32")
    wave = numpy.pad(samples.mean(1), (0, max(0, 512 - len(samples))))
    frames = numpy.lib.stride_tricks.sliding_window_view(wave, 512)[::128] * numpy.hanning(512)
    decibels = 20 * numpy.log10(numpy.abs(numpy.fft.rfft(frames)).T + 1e-4)
    buffer = io.BytesIO()
    imsave(buffer, decibels, origin="lower", vmin=-50, vmax=30, cmap="magma", format="png")
    return f"<img class=spectrogram src='data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'>"
