"""A model and a run for the commands."""

from pathlib import Path

import pytest
import torch

import vivavoce
from abuse import trained_run


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """A model directory: mini, smoke size, fresh weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "smoke"
    small = vivavoce.build("mini", size="smoke")
    with torch.no_grad():
        for weight in small.system.stage.parameters():
            weight.zero_()  # all logits equal: it chooses pads and falls silent, where fresh weights babble on
    small.save(folder)
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A finished run of a small language model."""
    return trained_run(tmp_path_factory.mktemp("run") / "run")
