"""Programs that speak: what they write is read, and whatever goes wrong is told with their own complaint."""

import subprocess

import numpy as np
import pytest

from vivavoce.audio import Audio, write
from vivavoce.data.programs import WAV, record, run
from vivavoce.errors import DataError


@pytest.fixture
def program(tmp_path):
    """Makes a program `speaker` of lines of sh."""

    def make(*lines):
        path = tmp_path / "speaker"
        path.write_text("\n".join(["#!/bin/sh", *lines]))
        path.chmod(0o755)
        return str(path)

    return make


def test_a_recording_and_what_was_printed(program, tmp_path, monkeypatch):
    write(tmp_path / "given.wav", Audio(np.array([[0.25, -0.5]], np.float32), 8_000))
    speaker = program(f"cp {tmp_path}/given.wav $1", "cat")
    samples, sample_rate, printed = record(speaker, WAV, script="said: one")
    assert samples.tolist() == [[0.25, -0.5]] and samples.dtype == np.float32 and sample_rate == 8_000
    assert printed == "said: one"
    monkeypatch.chdir(tmp_path)
    assert record("./speaker", WAV, script="")[0].shape == (1, 2)  # found from here, though it runs elsewhere
    assert run("./speaker", "copy.wav", script="x") == "x" and (tmp_path / "copy.wav").exists()


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["echo no such voice >&2", "exit 3"], "speaker failed with status 3: no such voice"),
        (["exit 4"], "speaker failed with status 4: no message"),
        (["echo cannot write >&2"], "speaker failed with status 0: cannot write"),
        ([f"echo nonsense > {WAV}"], "speaker wrote a file that cannot be read"),
    ],
)
def test_failures_say_what_the_program_said(program, lines, says):
    with pytest.raises(DataError, match=says):
        record(program(*lines))


def test_a_program_that_cannot_run_or_does_not_end(program, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"absent could not run: .*No such file"):
        run(str(tmp_path / "absent"))

    def hang(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(DataError, match=r"speaker could not run: .*timed out after 120 seconds"):
        run(program())
