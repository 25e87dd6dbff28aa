"""Several codecs beside each other: one table, one picture of quality over rate, and one page to listen to."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vivavoce.audio import Audio, read, write
from vivavoce.data.files import atomic
from vivavoce.errors import RequestError
from vivavoce.evaluation.codec import CodecQuality
from vivavoce.evaluation.harness import Result, Scored
from vivavoce.evaluation.report import interval, number

RATE_OF = "bits per second"
COLORS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#bf3989", "#0a7ea4", "#57606a")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 240, 46, 12, 26, 34
HEARD = 3  # clips that the page lets one hear
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1200px;margin:2em auto;padding:0 1em;color:#1b1f24}
table{border-collapse:collapse;font-size:.85em}td,th{padding:.2em .7em .2em 0;text-align:left;vertical-align:top}
td small{color:#57606a;display:block}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:1em}
figure{margin:0}figcaption{font-size:.9em;color:#555}audio{width:100%}img{width:100%;height:110px}svg{max-width:100%}"""


@dataclass(frozen=True)
class Measured:
    """A codec's name, its results, and its clips with what it made of them."""

    name: str
    results: Sequence[Result]
    scored: Sequence[Scored]


def whole(measured: Measured) -> list[Result]:
    """Results of the codec as a whole, not of single codebooks."""
    return [result for result in measured.results if not result.group]


def columns(codecs: Sequence[Measured]) -> list[str]:
    """Metrics that any of the codecs has, in their order."""
    return list(dict.fromkeys(result.metric for codec in codecs for result in whole(codec)))


def cell(codec: Measured, metric: str) -> tuple[str, str]:
    """Value with its unit, and interval, as texts; empty where there is none."""
    for result in whole(codec):
        if result.metric == metric:
            span = interval(result)
            low, _, high = span.partition(" - ")
            return number(result.value, result.unit), span if low != high else ""
    return "", ""


def markdown(codecs: Sequence[Measured]) -> str:
    """Metrics down, codecs across: `value (interval)`."""
    lines = [f"| | {' | '.join(short(codec.name) for codec in codecs)} |", "|---|" + "---|" * len(codecs)]
    for metric in columns(codecs):
        cells = []
        for codec in codecs:
            value, span = cell(codec, metric)
            cells.append(f"{value} ({span.replace(' - ', ' to ')})" if span else value)
        lines.append(f"| {metric} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def table(codecs: Sequence[Measured], title: str) -> Any:
    """The same as a rich table."""
    from rich.markup import escape
    from rich.table import Table

    made = Table(title=title, title_justify="left")
    made.add_column("")
    for codec in codecs:
        made.add_column(escape(short(codec.name)), justify="right")
    for metric in columns(codecs):
        made.add_row(escape(metric), *("\n".join(part for part in cell(codec, metric) if part) for codec in codecs))
    return made


def curve(codecs: Sequence[Measured], metric: str) -> str:
    """Quality over rate as SVG text: a point with its interval for each codec, lines between the rates of one."""
    points = {codec.name: (_one(codec, RATE_OF), _one(codec, metric)) for codec in codecs}
    placed = {
        name: (rate.value, quality)
        for name, (rate, quality) in points.items()
        if rate is not None and quality is not None and rate.value > 0 and math.isfinite(quality.value)
    }
    if not placed:
        return ""
    rates = [math.log10(rate) for rate, _ in placed.values()]
    ends = [v for _, q in placed.values() for v in (q.value, q.low, q.high) if math.isfinite(v)]
    left, right = min(rates) - 0.08, max(rates) + 0.08
    low, high = min(ends), max(ends)
    low, high = (low - 0.05 * (high - low or 1), high + 0.05 * (high - low or 1))

    def across(rate: float) -> float:
        return LEFT + (math.log10(rate) - left) / (right - left) * (WIDTH - LEFT - RIGHT)

    def down(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [f"<text x='{LEFT}' y='14' font-weight='bold'>{html.escape(metric)}</text>"]
    for value in np.linspace(low, high, 5):
        y = down(float(value))
        parts.append(f"<path d='M{LEFT},{y:.1f}H{WIDTH - RIGHT}' stroke='#8886' stroke-width='.5'/>")
        parts.append(f"<text x='{LEFT - 4}' y='{y + 3:.1f}' text-anchor='end'>{value:.3g}</text>")
    ticks = [t for t in (500, 1000, 1500, 2000, 3000, 4000, 6000, 8000, 12000, 16000, 24000, 48000)]
    for tick in (t for t in ticks if left <= math.log10(t) <= right):
        parts.append(f"<text x='{across(tick):.1f}' y='{HEIGHT - 20}' text-anchor='middle'>{tick / 1000:g}</text>")
    parts.append(f"<text x='{WIDTH - RIGHT}' y='{HEIGHT - 6}' text-anchor='end'>kbit/s</text>")
    families: dict[str, list[tuple[float, Result]]] = {}
    for name, point in placed.items():
        families.setdefault(family(name), []).append(point)
    for count, (name, members) in enumerate(families.items()):
        color = COLORS[count % len(COLORS)]
        members.sort(key=lambda point: point[0])
        path = " ".join(f"{across(rate):.1f},{down(q.value):.1f}" for rate, q in members)
        parts.append(f"<polyline points='{path}' fill='none' stroke='{color}' stroke-width='1.3'/>")
        for rate, quality in members:
            x, y = across(rate), down(quality.value)
            if math.isfinite(quality.low):
                parts.append(f"<path d='M{x:.1f},{down(quality.low):.1f}V{down(quality.high):.1f}' stroke='{color}'/>")
            parts.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='{color}'/>")
        x, y = across(members[-1][0]), down(members[-1][1].value)
        label = html.escape(name)
        parts.append(f"<text x='{x - 5:.1f}' y='{y - 6:.1f}' text-anchor='end' fill='{color}'>{label}</text>")
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' font-size='9' "
        f"font-family='system-ui,sans-serif' fill='currentColor'>{''.join(parts)}</svg>"
    )


def family(name: str) -> str:
    """A codec's name without its rate: `runs/a:8` and `runs/a:4` are points of one curve."""
    found = re.fullmatch(r"(.+):[\d.]+", name)
    return Path(found.group(1) if found else name).name


def short(name: str) -> str:
    """A codec's name without the folders that lead to it."""
    return Path(name).name


def _one(codec: Measured, title: str) -> Result | None:
    return next((r for r in whole(codec) if r.metric == title or r.metric.startswith(f"{title} [")), None)


def save(codecs: Sequence[Measured], task: CodecQuality, folder: Path) -> Path:
    """`results.jsonl`, `table.md`, `rate-quality.svg` and `report.html` in `folder`; returns the page."""
    from vivavoce.evaluation.report import as_lines

    lines = []
    for codec in codecs:
        rows = (json.loads(line) for line in as_lines(codec.results).splitlines())
        lines += [json.dumps({"codec": codec.name, "rules": task.rules, **row}, ensure_ascii=False) for row in rows]
    curves = [curve(codecs, metric) for metric in columns(codecs) if metric.split(" [")[0] not in PLAIN]
    written = {
        "results.jsonl": "\n".join(lines) + "\n",
        "table.md": markdown(codecs),
        "rate-quality.svg": joined([made for made in curves if made][:4]),
        "report.html": _page(codecs, task, curves),
    }
    for name, text in written.items():
        with atomic(folder / name) as file:
            file.write(text)
    return folder / "report.html"


PLAIN = (RATE_OF, "tokens per second", "real-time factor", "delay")


def joined(charts: Sequence[str]) -> str:
    """Several charts as one picture, two in a row."""
    rows = -(-len(charts) // 2)
    parts = []
    for number_, text in enumerate(charts):
        x, y = (number_ % 2) * WIDTH, (number_ // 2) * HEIGHT
        parts.append(text.replace("<svg ", f"<svg x='{x}' y='{y}' width='{WIDTH}' height='{HEIGHT}' ", 1))
    size = f"width='{2 * WIDTH}' height='{rows * HEIGHT}'"
    back = "<rect width='100%' height='100%' fill='white'/>"
    return f"<svg xmlns='http://www.w3.org/2000/svg' {size} color='#1b1f24'>{back}{''.join(parts)}</svg>"


def _page(codecs: Sequence[Measured], task: CodecQuality, curves: Sequence[str]) -> str:
    metrics = columns(codecs)
    head = "".join(f"<th>{html.escape(metric)}" for metric in metrics)
    rows = []
    for codec in codecs:
        cells = (cell(codec, metric) for metric in metrics)
        values = "".join(f"<td>{value}<small>{span}</small>" for value, span in cells)
        rows.append(f"<tr><th>{html.escape(short(codec.name))}{values}")
    books = "".join(_books(codec) for codec in codecs)
    clips = "".join(_clip(codecs, place) for place in _places(len(codecs[0].scored)))
    people = len({(s.item.expected or {}).get("speaker", s.item.id) for s in codecs[0].scored})
    about = (
        f"{len(codecs[0].scored)} clips of {people} speakers, at most {task.seconds:g} s each; means over clips, 95 % "
        f"intervals by drawing whole speakers. In brackets: whose definition a number follows."
    )
    return (
        f"<!doctype html><meta charset=utf-8><title>Codecs compared</title><style>{STYLE}</style>"
        f"<h1>Codecs compared, rules of {task.rules}</h1><p>{html.escape(about)}</p>"
        f"<table><tr><th>codec{head}{''.join(rows)}</table><h2>Quality over rate</h2>"
        f"<div class=grid>{''.join(f'<figure>{c}</figure>' for c in curves if c)}</div>"
        f"<h2>Codebooks</h2><table><tr><th>codec<th>entries in use<th>perplexity{books}</table>"
        f"<h2>To hear</h2>{clips}"
    )


def _books(codec: Measured) -> str:
    def values(title: str) -> str:
        found = [r for r in codec.results if r.group and title in r.metric]
        return ", ".join(f"{number(r.value)}{' ' + r.note if r.note else ''}" for r in found)

    used = values("entries in use")
    return f"<tr><th>{html.escape(short(codec.name))}<td>{used}<td>{values('perplexity')}" if used else ""


def _places(count: int) -> list[int]:
    if count <= HEARD:
        return list(range(count))
    return [round((place + 0.5) * count / HEARD - 0.5) for place in range(HEARD)]


def _clip(codecs: Sequence[Measured], place: int) -> str:
    item = codecs[0].scored[place].item
    figures = [_figure("original", read(item.given).mono())]
    for codec in codecs:
        found = next((s for s in codec.scored if s.item.id == item.id), None)
        if found is not None:
            figures.append(_figure(short(codec.name), found.artefact["audio"]))
    return f"<h3>{html.escape(item.id)}</h3><div class=grid>{''.join(figures)}</div>"


def _figure(name: str, audio: Audio, most: float = 8.0) -> str:
    """A spectrogram, a player and a name."""
    import tempfile

    audio = audio[:most]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.flac"
        write(path, audio)
        data = base64.b64encode(path.read_bytes()).decode()
    player = f"<audio controls src='data:audio/flac;base64,{data}'></audio>"
    return f"<figure>{spectrogram(audio)}{player}<figcaption>{html.escape(name)}</figcaption></figure>"


def spectrogram(audio: Audio) -> str:
    """An image of 0 to 8 kHz, 80 dB from black to white."""
    from matplotlib.image import imsave

    wave = audio.mono().resample(16000).samples[0]
    wave = np.pad(wave, (0, max(0, 512 - len(wave))))
    frames = np.lib.stride_tricks.sliding_window_view(wave, 512)[::128] * np.hanning(512)
    decibels = 20 * np.log10(np.abs(np.fft.rfft(frames)).T + 1e-4)
    buffer = io.BytesIO()
    small = {"quality": 75, "optimize": True}  # a tenth of a png
    imsave(buffer, decibels, origin="lower", vmin=-50, vmax=30, cmap="magma", format="jpeg", pil_kwargs=small)
    return f"<img src='data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}'>"


def compare(
    codecs: Mapping[str, Any],
    task: CodecQuality,
    data: Path | None,
    out: Path | None = None,
    limit: int | None = None,
    report: Any = None,
) -> list[Measured]:
    """Every codec on the same clips; arguments as `harness.collect` has them, answers of each in a folder of its own.

    `report(name, done, total)` is called as clips are answered. Raises `RequestError` for no codecs.
    """
    from vivavoce.evaluation.harness import collect

    if not codecs:
        raise RequestError("no codecs to compare: name at least one")
    found = []
    for name, model in codecs.items():
        own = None if out is None else out / re.sub(r"[^A-Za-z0-9._+-]", "_", name)
        told = None if report is None else (lambda done, total, name=name: report(name, done, total))
        scored, failed = collect(model, task, data, own, limit, told)
        results = task.summarize(scored)
        if failed:
            nothing = math.nan
            note = f"first: {failed[0][0]}: {failed[0][1]}"
            results.append(
                Result(task.name, "clips that could not be used", "", len(failed), nothing, nothing,
                       len(scored) + len(failed), note=note)
            )  # fmt: skip
        found.append(Measured(name, results, scored))
    return found
