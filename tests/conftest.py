"""Shared fixtures: the recorded-speech pack, shipped examples, and a quiet, deterministic, offline torch."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VIVAVOCE_OFFLINE", "1")

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
sys.path.append(str(ROOT / "tests" / "shims"))  # behind everything: a real torchaudio wins

pytest_plugins = ["proof_plugin", "no_network", "turns"]

# The same examples in every run, here, in CI and in the long sweep: a red suite stays red until it is mended.
hypothesis.settings.register_profile("vivavoce", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("vivavoce")


def pack_path() -> Path | None:
    """The recorded-speech pack: `$VIVAVOCE_TEST_DATA` if set, else `../shared/data` beside the checkout; or None."""
    path = Path(os.environ.get("VIVAVOCE_TEST_DATA") or ROOT.parent / "shared" / "data")
    return path if (path / "manifests").is_dir() else None


@pytest.fixture(scope="session")
def pack() -> Path:
    """Folder of the recorded-speech pack (`manifests/*.jsonl`, `audio/`); the test skips where there is none."""
    path = pack_path()
    if path is None:
        pytest.skip("no recorded-speech pack: set VIVAVOCE_TEST_DATA to its folder")
    return path


@pytest.fixture(scope="session")
def speech_files() -> list[Path]:
    """Some real speech, sentences first: of the pack where there is one, else the recordings that are shipped."""
    path = pack_path()
    if path is None:
        shipped = (ROOT / "examples" / "recordings").glob("*.wav")
        return sorted(shipped, key=lambda file: (not file.name.startswith("sentence"), file.name))
    folders = ["jfk", "ami_excerpts", "dialogue_sim", "librispeech_other", "nonspeech"]
    return [sorted((path / "audio" / name).glob("*.flac"))[0] for name in folders]


@pytest.fixture
def command(capsys):
    """Run the command line in this process: exit code, stdout, stderr."""
    from vivavoce.cli import main

    def call(*arguments):
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        return left.value.code, *capsys.readouterr()

    return call


@pytest.fixture(autouse=True)
def _deterministic():
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
