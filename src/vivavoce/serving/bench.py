"""A server and its clients on this machine, each in a process of its own: what people notice, what it costs."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vivavoce.errors import VivavoceError
from vivavoce.serving.load import STAGES, Plan

PATIENCE = 120.0  # seconds for a server to measure itself and open


def bench_server(model: str, plan: Plan, rows: int = 0, options: tuple[str, ...] = ()) -> dict[str, Any]:
    """Serve `model` with `rows` (0: measured) and let the plan's clients come; what was measured, as plain data.

    `late`: share of frames whose steps ended later than the next was due; `server_cpu`, `clients_cpu`: cores that each
    side used; `frame_ms`: from when a frame was due to the end of its steps.
    """
    port = free_port()
    command = [sys.executable, "-m", "vivavoce", "talk", model, "--port", str(port), "--rows", str(rows)]
    command += ["--each", str(plan.clients + 20 * plan.hostile), *options]  # all may come from one address
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    started = time.monotonic()
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        url = f"http://127.0.0.1:{port}"
        ready = wait_for(url, server)
        opened = time.monotonic() - started
        plan = Plan(**{**asdict(plan), "url": url, "model": model})
        before, began = cpu_seconds(server.pid), time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "vivavoce.serving.load"], input=json.dumps(asdict(plan)), capture_output=True,
            text=True, env=environment,
        )
        if done.returncode:
            raise VivavoceError(f"the clients failed: {done.stderr.strip().splitlines()[-1:]}")
        lasted, used = time.monotonic() - began, cpu_seconds(server.pid)
        found, health = json.loads(done.stdout), ask(url, "/health")
        return {
            **found, "rows": ready["rows"], "rows_step_ms": ready["step_ms"], "frames": health["frames"],
            "late_frames": health["late"], "late": round(health["late"] / max(1, health["frames"]), 5),
            "opened_seconds": round(opened, 2), "frame_ms": health["frame_ms"], "step_ms": health["last_steps_ms"],
            "server_cpu": None if used is None or before is None else round((used - before) / lasted, 3),
            "left_behind": health["conversations"],
        }
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


def table(found: dict[str, Any]) -> str:
    """What `bench_server` found, as lines to read."""
    plan = found["plan"]

    def spread(name: str) -> str:
        return spread_of(found[name])

    lines = [
        f"{plan['clients']} clients in real time, {plan['dialect']}, {found['seconds']:.0f} s, {found['rows']} rows"
        + (f", {plan['hostile']} hostile beside them" if plan["hostile"] else ""),
        f"frames late            {100 * found['late']:.2f} % of {found['frames']}",
        f"frame, due to done     {spread('frame_ms')} ms",
        f"turn gap               {spread('turn_gap_ms')} ms; answers: {found['answered']} of {found['asked']}",
        *(f"  {name:<32}{spread_of(gaps)} ms" for name, gaps in found["turn_gaps_ms"].items()),
        f"sent to heard          {spread('round_trip_ms')} ms",
        f"added by the server    {spread('added_ms')} ms (the wait for the clock left out)",
        f"  in the first second  {spread('added_cold_ms')} ms; later {spread('added_warm_ms')} ms",
        f"  within the server    {spread('within_ms')} ms (without carrying and reading on both sides)",
        *(f"  {name:<21}{spread_of(times)} ms" for name, times in found["stages_ms"].items()),
        f"sound late at clients  {found['late_pieces']} of {found['pieces']} pieces",
        f"cores                  server {found['server_cpu']}, clients {found['clients_cpu']}",
    ]
    if found["failed_clients"]:
        lines.append(f"clients that failed    {found['failed_clients']}: {'; '.join(found['errors'][:3])}")
    return "\n".join(lines)


def spread_of(values: dict[str, float] | None) -> str:
    """Percentiles to read."""
    return "-" if not values else "  ".join(f"{mark} {values[mark]:.1f}" for mark in ("p50", "p95", "p99"))


def picture(found: list[dict[str, Any]], path: Path) -> None:
    """Turn gaps, what the server adds, and each stage of a frame's way (medians), by number of clients, as a PNG."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(15, 3.6), layout="constrained")
    at = [row["plan"]["clients"] for row in found]
    for axis, name, title in zip(
        axes, ("turn_gap_ms", "added_ms", "frame_ms"), ("turn gap", "added by the server", "frame, due to done")
    ):
        for mark in ("p50", "p95", "p99"):
            axis.plot(at, [row[name][mark] if row[name] else float("nan") for row in found], "o-", label=mark)
        axis.set(title=title, xlabel="clients", ylabel="ms", ylim=(0, None))
        axis.legend()
    names, below = [str(count) for count in at], [0.0] * len(found)
    for stage in STAGES:
        heights = [(row["stages_ms"][stage] or {"p50": 0.0})["p50"] for row in found]
        axes[3].bar(names, heights, bottom=below, label=stage)
        below = [low + height for low, height in zip(below, heights)]
    axes[3].set(title="a frame's way, medians", xlabel="clients", ylabel="ms")
    axes[3].legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def free_port() -> int:
    """A port that nobody listens to at this moment."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_for(url: str, server: Any) -> dict[str, Any]:
    """The server's health as soon as it answers; `VivavoceError` where it does not come up."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if server.poll() is not None:
            raise VivavoceError(f"the server ended: {(server.stderr.read().strip().splitlines() or ['no word'])[-1]}")
        try:
            return ask(url, "/health")
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise VivavoceError(f"the server did not open within {PATIENCE:.0f} s")


def ask(url: str, path: str) -> dict[str, Any]:
    """JSON of a server's page."""
    with urllib.request.urlopen(url + path, timeout=10) as answer:
        return json.load(answer)


def cpu_seconds(process: int) -> float | None:
    """Seconds of computing that a process has used; None where the system does not say."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
