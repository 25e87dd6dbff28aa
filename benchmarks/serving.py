"""Many people talk to one model: this server beside one with the structure that people have now.

    python benchmarks/serving.py [--model mini] [--clients 1 4 8] [--seconds 30] [--output table.md]

The other server has the structure of Kyutai's Python server for Moshi: one conversation at a time behind a lock, the
model's step and the Opus codec inside the event loop, no clock of its own. It is written here, for the same model, so
that structure alone is compared. Clients speak Moshi's bytes in real time and ask shipped recordings.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
QUESTIONS = ["three-four-george-joined.wav", "six-nine-lucas-joined.wav"]


def one_lock(model_name: str, port: int) -> None:
    """The baseline: a lock around a conversation, everything in the event loop."""
    import numpy as np
    import sphn
    import uvicorn
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route, WebSocketRoute

    import vivavoce
    from vivavoce.audio.resample import Resampler

    model, lock = vivavoce.load(model_name), asyncio.Lock()

    async def chat(websocket) -> None:
        await websocket.accept()
        async with lock:
            session = model.duplex()
            size, rate = session.frame_size, session.sample_rate
            ears, mouth = Resampler(24_000, rate), Resampler(rate, 24_000)
            reader, writer = sphn.OpusStreamReader(24_000), sphn.OpusStreamWriter(24_000)
            waiting, rest = np.zeros(0, np.float32), np.zeros(0, np.float32)
            await websocket.send_bytes(b"\x00")
            while True:
                message = await websocket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                samples = reader.append_bytes((message.get("bytes") or b"\x01")[1:])
                if not len(samples):
                    continue
                waiting = np.concatenate([waiting, ears.step(samples[None])[0]])
                while len(waiting) >= size:
                    out = session.step(waiting[:size])
                    waiting = waiting[size:]
                    rest = np.concatenate([rest, mouth.step(out.audio[None])[0]])
                    while len(rest) >= 960:
                        pages = writer.append_pcm(rest[:960])
                        rest = rest[960:]
                        if pages:
                            await websocket.send_bytes(b"\x01" + pages)
                    if out.text:
                        await websocket.send_bytes(b"\x02" + out.text.encode())

    async def health(request) -> JSONResponse:
        nothing = {"frames": 0, "late": 0, "frame_ms": None, "last_steps_ms": None, "conversations": 0}
        return JSONResponse({**nothing, "rows": 1, "step_ms": None})

    app = Starlette(routes=[WebSocketRoute("/api/chat", chat), Route("/health", health)])
    uvicorn.run(app, port=port, log_level="error", ws_per_message_deflate=False)


def measure(kind: str, model: str, clients: int, seconds: float, questions: list[str]) -> dict:
    """One of the two servers with so many clients."""
    from vivavoce.serving.bench import bench_server, cpu_seconds, free_port, wait_for
    from vivavoce.serving.load import Plan

    plan = Plan("", "moshi", model, clients, seconds, questions=questions)
    if kind == "vivavoce":
        return bench_server(model, plan)
    port = free_port()
    plan = Plan(**{**asdict(plan), "url": f"http://127.0.0.1:{port}"})
    command = [sys.executable, __file__, "--one-lock", model, str(port)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        wait_for(plan.url, server)
        before, began = cpu_seconds(server.pid), time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "vivavoce.serving.load"], input=json.dumps(asdict(plan)), capture_output=True,
            text=True, check=True,
        )
        used = cpu_seconds(server.pid)
        share = None if used is None or before is None else round((used - before) / (time.monotonic() - began), 3)
        return {**json.loads(done.stdout), "server_cpu": share, "late": None}
    finally:
        server.kill()


def row(kind: str, found: dict) -> str:
    """A line of the table."""
    gap, clients = found["turn_gap_ms"], found["plan"]["clients"]
    served = clients - found["failed_clients"]
    gaps = f"{gap['p50']:.0f} / {gap['p99']:.0f} ms" if gap else "-"
    late = "-" if found["late"] is None else f"{100 * found['late']:.2f} %"
    answered = f"{found['answered']} of {found['asked']}"
    return f"| {kind} | {clients} | {served} | {answered} | {gaps} | {late} | {found['server_cpu']} |"


def main() -> None:
    """Both, one after the other, for each number of clients."""
    if sys.argv[1:2] == ["--one-lock"]:
        one_lock(sys.argv[2], int(sys.argv[3]))
        return
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="mini")
    options.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8])
    options.add_argument("--seconds", type=float, default=30.0)
    options.add_argument("--output", type=Path)
    chosen = options.parse_args()
    questions = [str(ROOT / "examples" / "recordings" / name) for name in QUESTIONS]
    lines = [
        "| server | clients | served | questions answered | turn gap, median / 99 % | frames late | cores |",
        "|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for clients in chosen.clients:
        for kind in ("vivavoce", "one lock"):
            lines.append(row(kind, measure(kind, chosen.model, clients, chosen.seconds, questions)))
            print(lines[-1], flush=True)
    if chosen.output:
        chosen.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
