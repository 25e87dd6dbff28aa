"""Processes that share a batch, with whole copies (DDP) or parts of the layers (FSDP2), and change their number."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from sharing import BACKBONE, recipe_of
from toys import Adversaries, Regression

from vivavoce.errors import RecipeError
from vivavoce.lm.decoder import Decoder
from vivavoce.nn.transformer import TransformerConfig
from vivavoce.training import PhaseSettings, RunDirectory, train_phase
from vivavoce.training import checkpoint as checkpoints
from vivavoce.training.metrics import read_metrics
from vivavoce.training.recipes import train_recipe
from warm_process import finish, free_port, start

WORKER = Path(__file__).parent / "sharing.py"


def together(processes, directory, steps, **settings):
    """Train `steps` in so many processes."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
    errors = directory.with_name("errors")
    ranks = [
        start(WORKER, "rank", directory, steps, settings, errors=errors, RANK=str(rank), **meeting)
        for rank in range(processes)
    ]
    assert [finish(rank) for rank in ranks] == [0] * processes, errors.read_text()


def newest(directory):
    return checkpoints.latest(RunDirectory(directory).checkpoints("lm"))


def logged(directory):
    return [{k: v for k, v in line.items() if k not in ("seconds", "phase", "mfu")}
            for line in read_metrics(RunDirectory(directory).metrics)]  # fmt: skip


def check_same(directory, whole, step):
    """Losses of every step up to `step`, and what the checkpoint holds, are those of the undisturbed run."""
    wanted = [line for line in logged(whole) if line["step"] <= step and "loss" in line]
    found = [line for line in logged(directory) if "loss" in line]
    assert [line["step"] for line in found] == list(range(1, step + 1))
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4, rel=1e-4)
    tensors = newest(directory).modules["stage"]
    assert all(type(tensor) is torch.Tensor for tensor in tensors.values())
    return tensors


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Six steps in one process."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train_recipe(recipe_of(6, {"ema": 0.9}), folder)
    return folder


def test_a_run_goes_on_in_any_number_of_processes(whole, tmp_path):
    """Two steps each; the data go on where they were, and so do optimizer and averaged weights."""
    order = [(1, {}), (3, {"shard": True, "recompute": True}), (2, {})]
    for part, (processes, settings) in enumerate(order, 1):
        if processes == 1:
            train_recipe(recipe_of(2 * part, {"ema": 0.9}), tmp_path / "run")
        else:
            together(processes, tmp_path / "run", 2 * part, ema=0.9, **settings)
        check_same(tmp_path / "run", whole, 2 * part)
    mine, theirs = newest(tmp_path / "run"), newest(whole)
    assert mine.step == theirs.step == 6 and mine.state["tokens"] == theirs.state["tokens"] > 150
    for kind in ("modules", "averages"):
        for key, value in getattr(theirs, kind)["stage"].items():
            torch.testing.assert_close(getattr(mine, kind)["stage"][key], value, atol=1e-3, rtol=1e-3)
    moments = theirs.state["optimizers"]["main"]
    assert mine.state["optimizers"]["main"].keys() == moments.keys()
    for key, state in moments.items():
        assert mine.state["optimizers"]["main"][key]["exp_avg"].shape == state["exp_avg"].shape
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_alone_nothing_is_spread(whole, tmp_path):
    train_recipe(recipe_of(6, {"ema": 0.9, "shard": True}), tmp_path / "run")
    for key, value in newest(whole).modules["stage"].items():
        assert torch.equal(newest(tmp_path / "run").modules["stage"][key], value), key


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_layers_that_compute_again_have_the_same_gradients_and_keep_less(dropout):
    options = {name: value for name, value in BACKBONE.items() if name != "kind"}
    torch.manual_seed(0)
    decoder = Decoder(TransformerConfig(**{**options, "layers": 4, "dropout": dropout})).train()
    x = torch.randn(3, 24, 32, requires_grad=True)

    def gradients(again):
        decoder.transformer.recompute = again
        decoder.zero_grad()
        x.grad = None
        torch.manual_seed(1)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            decoder(x).square().mean().backward()
        return [x.grad.clone(), *(p.grad.clone() for p in decoder.parameters())], sum(kept)

    (plain, all_kept), (again, few_kept) = gradients(False), gradients(True)
    for a, b in zip(plain, again, strict=True):
        assert torch.equal(a, b)
    assert few_kept < all_kept / 3


def test_recomputing_trains_the_same(whole, tmp_path):
    train_recipe(recipe_of(6, {"ema": 0.9, "recompute": True}), tmp_path / "run")
    check_same(tmp_path / "run", whole, 6)


def test_what_cannot_be_spread_or_recomputed_says_so(tmp_path):
    def phase(task, **settings):
        given = PhaseSettings.of({"name": "fit", "steps": 1, **settings})
        train_phase(task, RunDirectory.open(tmp_path), given)

    with pytest.raises(RecipeError, match="recompute: net has no transformer"):
        phase(Regression(), recompute=True)
    with pytest.raises(RecipeError, match="shard: net has no transformer"):
        phase(Regression(), shard=True)
    with pytest.raises(RecipeError, match="shard: not for several optimizers"):
        phase(Adversaries(), shard=True)
    with pytest.raises(RecipeError, match="tokens: this task counts none"):
        phase(Regression(), steps=None, tokens=100)
    rows = recipe_of(1, {"shard": True}, objective={"kind": "next_token", "mix": "rows"})
    train_recipe(rows, tmp_path / "one task, in whichever rows")
