"""Published clients, unchanged, talk to the Realtime dialect, each in the environment that has it.

`openai` in this environment is always tried. The others are in the folder $VIVAVOCE_CLIENTS: NAME/bin/python with the
package, or NAME/node_modules.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from serving.realtime_clients.raw import BEGIN, END, SOUND, USER, WORDS, recording, silence
from serving.waiting import nobody_left
from vivavoce.serving.sound_formats import bytes_of, samples_of
from vivavoce.systems.signal_models import FRAME, tone

SCRIPTS = Path(__file__).parent / "realtime_clients"
ANSWER = samples_of(bytes_of(tone(440.0, 0, 12 * FRAME)))
OPENAI = ("this environment", "openai-1.109.1", "openai-2.8.0", "openai-2.54.0")


def environment(name):
    """The folder of other clients' environments, or the test skips."""
    folder = Path(os.environ.get("VIVAVOCE_CLIENTS", "")) / name
    if not os.environ.get("VIVAVOCE_CLIENTS") or not folder.exists():
        pytest.skip(f"no {name}: VIVAVOCE_CLIENTS is no folder with that environment")
    return folder


def question(tmp_path):
    """A recorded question as a file at 24 kHz."""
    samples = np.concatenate([silence(0.4), recording("sentence-librispeech", 2.3), silence(0.3)])
    with wave.open(str(tmp_path / "question.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(24_000)
        file.writeframes(bytes_of(samples))
    return tmp_path / "question.wav"


def session(command, port, tmp_path, seconds=120):
    """What a client's script prints last, as JSON."""
    quiet = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [*map(str, command), str(port), str(question(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=quiet, check=False)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("name", OPENAI)
def test_the_openai_package_talks(serve, tmp_path, name):
    python = sys.executable if name == OPENAI[0] else environment(name) / "bin" / "python"
    port, server = serve("tone", dialects=("realtime",), speed=4)
    found = session([python, SCRIPTS / "openai_session.py"], port, tmp_path)
    assert name == OPENAI[0] or found["version"] == name.removeprefix("openai-")
    assert (found["words"], found["cut"], found["silence"]) == ("tone number 1 ends", "tone", 400)
    assert (found["code"], found["event_id"]) == ("response_cancel_not_active", "mine")
    assert (found["written"], found["metadata"]) == ("tone number 2 ends", {"turn": "second"})
    assert found["aside"] == "tone number 1 ends" and found["tokens"] > 40
    sound = samples_of(base64.b64decode(found["audio"]))
    assert np.array_equal(sound[: len(ANSWER)], ANSWER) and not sound[len(ANSWER) :].any()
    expected = {*USER, *BEGIN, *END, WORDS, SOUND, "session.created", "session.updated", "error"}
    assert expected <= set(found["types"])
    assert "ResponseAudioDeltaEvent" in found["classes"] and "ConversationItemDone" in found["classes"]
    nobody_left(server)


@pytest.mark.parametrize("name", (OPENAI[0], OPENAI[1]))
def test_the_beta_client_of_the_openai_package_talks(serve, tmp_path, name):
    python = sys.executable if name == OPENAI[0] else environment(name) / "bin" / "python"
    port, server = serve("tone", dialects=("realtime",), speed=4)
    found = session([python, SCRIPTS / "openai_beta.py"], port, tmp_path)
    assert found["words"] == "tone number 1 ends" and found["modalities"] == ["audio", "text"] and heard(found)
    assert {"conversation.item.created", "response.audio_transcript.delta"} <= set(found["types"])
    nobody_left(server)


def heard(found):
    """The answer's sound, which must be what `tone` says."""
    sound = samples_of(base64.b64decode(found["audio"]))
    return len(sound) >= len(ANSWER) and np.array_equal(sound[: len(ANSWER)], ANSWER)


def test_openai_agents_under_node(serve, tmp_path):
    folder, node = environment("agents"), shutil.which("node")
    if node is None:
        pytest.skip("no node: @openai/agents runs under it")
    port, server = serve("tone", dialects=("realtime",), speed=4)
    script = ["/usr/bin/env", f"AGENTS={folder.resolve()}", node, SCRIPTS / "agents_session.mjs"]
    found = session(script, port, tmp_path)
    assert heard(found) and not found["errors"]
    roles = [(item["role"], item["status"]) for item in found["items"]]
    assert roles == [("user", "completed"), ("assistant", "completed")] * 2
    # It cuts answers itself, by its own clock: what it shows is what this server keeps.
    assert found["items"][0]["text"].startswith("sound") and found["items"][1]["text"].startswith("tone")
    assert found["types"].count("response.done") == 2 and "conversation.item.truncated" in found["types"]
    nobody_left(server)


def test_livekits_realtime_model(serve, tmp_path):
    port, server = serve("tone", dialects=("realtime",), speed=4)
    found = session([environment("livekit") / "bin" / "python", SCRIPTS / "livekit_session.py"], port, tmp_path)
    assert (found["words"], found["second"]) == ("tone number 1 ends", "tone number 1 ends") and heard(found)
    assert found["user"] and set(" ".join(found["user"]).split()) == {"sound"}
    assert found["errors"] == []
    assert "hello" not in found["known"] and len(found["known"]) == 2  # the text was refused, and it knows
    assert {*USER, *BEGIN, *END} <= set(found["types"])
    pushed = [kind for kind in found["second_types"] if kind.startswith("input_audio_buffer")]
    assert pushed == ["input_audio_buffer.committed"]
    nobody_left(server)


def test_pipecats_realtime_service(serve, tmp_path):
    port, server = serve("tone", dialects=("realtime",))
    found = session([environment("pipecat") / "bin" / "python", SCRIPTS / "pipecat_session.py"], port, tmp_path)
    assert found["words"] == "tone number 1 ends" and heard(found)
    assert found["user"] and set(" ".join(found["user"]).split()) == {"sound"}
    assert not found["errors"]
    assert found["turns"] == ["ProposedUserStartedSpeakingFrame", "ProposedUserStoppedSpeakingFrame"]
    nobody_left(server)
