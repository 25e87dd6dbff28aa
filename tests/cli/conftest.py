"""A model and a run for the commands."""

from pathlib import Path

import pytest
import torch

import vivavoce
from abuse import TRAIN
from vivavoce.cli import main


@pytest.fixture
def command(capsys):
    """Run the command line in this process: exit code, stdout, stderr."""

    def call(*arguments):
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        return left.value.code, *capsys.readouterr()

    return call


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
    folder = tmp_path_factory.mktemp("run") / "run"
    with pytest.raises(SystemExit) as left:
        main([*TRAIN, "--run", str(folder)])
    assert left.value.code == 0
    return folder
