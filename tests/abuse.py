"""What the tests of bad input share: audio files to order, a command run in this process, a disk that is full."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile

from vivavoce.cli import main

# name -> (arguments, the output). Every command that takes audio takes all of AUDIO.
LISTENERS = {
    "ask": lambda model, audio, out: ["ask", model, audio, "-o", out / "answer.wav"],
    "resynth": lambda model, audio, out: ["resynth", model, audio, "-o", out / "back.wav"],
    "encode": lambda model, audio, out: ["encode", model, audio, "-o", out / "codes.vvc"],
    "data import": lambda model, audio, out: [
        *("data", "import", audio.parent, "-o", out / "manifest.jsonl"),
        *("--verify", "--license", "CC0", "--source", "here"),
    ],
    "tokenize": lambda model, audio, out: [
        *("tokenize", model, audio.parent, "-o", out / "store", "--license", "CC0", "--source", "here")
    ],
}

# A small language model on made-up tokens: trained in a second.
TRAIN = (
    "train",
    "layout-delay",
    "--size",
    "smoke",
    "--device",
    "cpu",
    "--set",
    "training.patterns.settings={log_every: 1}",
)


def trained_run(folder: Path) -> Path:
    """A finished run of it in `folder`."""
    with pytest.raises(SystemExit) as left:
        main([*TRAIN, "--run", str(folder)])
    assert left.value.code == 0
    return folder


def tone(samples: int, channels: int = 1) -> np.ndarray:
    wave = 0.3 * np.sin(2 * np.pi * 300 * np.arange(samples) / 16000)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


def wav(folder: Path, name: str, samples: np.ndarray, rate: int = 16000, subtype: str = "PCM_16") -> Path:
    soundfile.write(folder / name, samples, rate, subtype=subtype)
    return folder / name


def raw(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def run(capsys, arguments) -> tuple[int, str]:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return left.value.code, capsys.readouterr().err


def refused(code: int, err: str, culprit: str, expected: int) -> None:
    """One line at the end says what and where, without a stack trace; lines before it tell of progress and skips."""
    lines = err.strip().splitlines()
    assert code == expected, err
    assert lines[-1].startswith("error: ") and "a fault of vivavoce" not in err and "Traceback" not in err, err
    progress = ("tokenize: ", "make: ", "resynthesis: ", "patterns: ")
    assert all(line.startswith(("skipped ", "error: ", *progress)) for line in lines), err
    assert culprit in err, err


@contextmanager
def small_disk(most: int) -> Iterator[None]:
    """No file may grow beyond `most` bytes, which is what a full disk looks like to a writer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def files(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]
