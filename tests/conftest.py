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

pytest_plugins = ["proof_plugin", "no_network"]

# The same examples in every run, here, in CI and in the long sweep: a red suite stays red until it is mended.
hypothesis.settings.register_profile("vivavoce", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("vivavoce")


def pack_path() -> Path | None:
    """The recorded-speech pack: `$VIVAVOCE_TEST_DATA`, else `../shared/data` beside the checkout, else None."""
    for candidate in (os.environ.get("VIVAVOCE_TEST_DATA"), ROOT.parent / "shared" / "data"):
        if candidate and (Path(candidate) / "manifests").is_dir():
            return Path(candidate)
    return None


@pytest.fixture(scope="session")
def pack() -> Path:
    """Folder of the recorded-speech pack (`manifests/*.jsonl`, `audio/`); the test skips where there is none."""
    path = pack_path()
    if path is None:
        pytest.skip("no recorded-speech pack: set VIVAVOCE_TEST_DATA to its folder")
    return path


@pytest.fixture(autouse=True)
def _deterministic():
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
