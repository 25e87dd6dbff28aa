"""A healthy corpus, store, recipe and run, in which tests plant faults; and how a finding is looked for."""

import json
from pathlib import Path

import numpy as np
import soundfile

from vivavoce.data.store import TokenWriter
from vivavoce.data.tokens import StreamSpec, TokenRow
from vivavoce.doctor.findings import Finding, Report

RATE, CLIPS = 16000, 24


def babble(seconds: float, seed: int) -> np.ndarray:
    """Noise that comes and goes as syllables do: float32 [samples]."""
    chance = np.random.default_rng(seed)
    noise = chance.normal(0, 1, round(seconds * RATE))
    at = np.arange(len(noise)) / RATE
    syllables = np.clip(np.sin(2 * np.pi * (3.5 * at + chance.random())), 0.02, None)
    return (0.06 * syllables * noise).astype(np.float32)


def corpus(folder: Path) -> Path:
    """24 clips of 1 to 2 s by 6 speakers, 4 of them to learn from: a manifest with texts, turns and licences."""
    (folder / "audio").mkdir(parents=True)
    rows = []
    for number in range(CLIPS):
        speaker = number % 6
        samples = babble(1 + (number % 5) / 5, number)
        soundfile.write(folder / "audio" / f"{number:02d}.wav", samples, RATE, subtype="PCM_16")
        text = ("something is said here " * 3)[: round(14 * len(samples) / RATE)].strip()
        rows.append(
            {
                **{"id": f"c/{number:02d}", "audio": f"audio/{number:02d}.wav", "duration": len(samples) / RATE},
                **{"license": "CC0-1.0", "source": "made", "text": text, "speaker": f"s{speaker}", "language": "en"},
                "split": "test" if speaker > 3 else "train",
                "segments": [{"start": 0.1, "end": 0.9, "text": text}],
            }
        )
    write_rows(folder, rows)
    return folder


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def write_rows(folder: Path, rows: list[dict]) -> None:
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def change(folder: Path, number: int, **fields) -> None:
    """Other fields of one row; None takes one out."""
    rows = rows_of(folder)
    rows[number].update(fields)
    write_rows(folder, rows)


def audio(folder: Path, number: int) -> tuple[Path, np.ndarray]:
    path = folder / "audio" / f"{number:02d}.wav"
    return path, soundfile.read(path, dtype="float32")[0]


SPECS = {
    "units": StreamSpec("made", "abc", (50.0,), RATE, size=8),
    "voice": StreamSpec("made", "def", (12.5, 25.0), RATE, size=16),
}


def token_rows(count: int = 40) -> list[TokenRow]:
    """Rows of random codes of two streams that last as long as their audio."""
    chance = np.random.default_rng(0)
    rows = []
    for number in range(count):
        seconds = 2 + number % 3
        streams = {
            "units": [chance.integers(0, 8, (1, 50 * seconds))],
            "voice": [[chance.integers(0, 16, round(rate * seconds)) for rate in (12, 24)]],
        }
        streams["voice"] = [[chance.integers(0, 16, n) for n in (25 * seconds // 2, 2 * (25 * seconds // 2))]]
        extra = {"split": "test" if number % 4 == 3 else "train"}
        rows.append(TokenRow(f"u{number}", float(seconds), "CC0-1.0", "made", streams, "en", ("hello",),
                             (f"s{number % 4}",), extra=extra))  # fmt: skip
    return rows


def store(folder: Path, rows: list[TokenRow], specs: dict[str, StreamSpec] | None = None) -> Path:
    """A finished store of two shards."""
    writer = TokenWriter(folder, specs or SPECS, rows_per_shard=25)
    writer.add(rows)
    writer.finish()
    return folder


def found(report: Report, check: str) -> Finding:
    """The one finding of a check, which must be there."""
    mine = [finding for finding in report.findings if finding.check == check]
    assert mine, f"'{check}' found nothing; there is {[(f.check, f.what) for f in report.findings]}"
    assert len(mine) == 1, mine
    return mine[0]


def nothing(report: Report) -> None:
    assert report.findings == [] and report.healthy, [(f.check, f.what, f.where) for f in report.findings]
