"""Agents of other people's kits talk to a Live session, each in an environment of its own."""

import json
import os
import subprocess
import wave
from pathlib import Path

import pytest

from serving.live_clients.raw import burst
from serving.waiting import nobody_left
from vivavoce.serving.sound_formats import bytes_of

SCRIPTS = Path(__file__).parent / "live_clients"
PEERS = {  # environment in $VIVAVOCE_CLIENTS -> what it must have, the script that uses it, how long it listens at most
    "livekit": ("livekit.plugins.openai", "livekit-agents and livekit-plugins-openai 1.8.9", "livekit_live.py", 30),
    "pipecat": ("pipecat.services.openai.live.llm", "pipecat-ai 1.14.0", "pipecat_live.py", 6),
}


def interpreter(name):
    """The interpreter of an environment that has the kit, or the test skips with what is missing."""
    package, what, *_ = PEERS[name]
    python = Path(os.environ.get("VIVAVOCE_CLIENTS", "")) / name / "bin/python"
    if not os.environ.get("VIVAVOCE_CLIENTS") or not python.exists():
        pytest.skip(f"no {python}: VIVAVOCE_CLIENTS is a folder of environments, {name} with {what}")
    look = f"import importlib.util, sys; sys.exit(importlib.util.find_spec('{package}') is None)"
    if subprocess.run([python, "-c", look], capture_output=True, check=False).returncode:
        pytest.skip(f"{python} has no {package}: install {what}")
    return python


@pytest.mark.parametrize("name", PEERS)
def test_an_agent_asks_and_hears_the_answer(serve, tmp_path, name):
    python = interpreter(name)
    port, server = serve("tone", dialects=("live",))
    with wave.open(str(tmp_path / "question.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(24_000)
        file.writeframes(bytes_of(burst(0.5, 0.1)))
    _, _, script, seconds = PEERS[name]
    arguments = [f"http://127.0.0.1:{port}/v1", "tone", str(tmp_path / "question.wav"), str(seconds)]
    quiet = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, SCRIPTS / script, *arguments], capture_output=True, text=True, timeout=120, env=quiet,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    said = found["assistant"] if isinstance(found["assistant"], str) else " ".join(found["assistant"])
    assert " ".join(said.split()) == "tone number 1 ends", found
    assert [text.strip() for text in found["user"]] == ["sound"] and not found["errors"]
    assert found["seconds"] > 0.9 and 0.24 < found["peak"] < 0.26
    nobody_left(server)  # it has said that it leaves
