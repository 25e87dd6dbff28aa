"""Streams of frames that the network predicts by densities: pGSLM's units with durations and pitches."""

import math

import numpy as np
import pytest
import torch

import vivavoce
from vivavoce.errors import RecipeError, RequestError
from vivavoce.layouts import StreamSpec
from vivavoce.lm.heads import DensityHead, make_density
from vivavoce.schema import read_recipe
from vivavoce.systems import assemble
from vivavoce.systems.token_system import Cells
from vivavoce.training.objectives import density_error, scored
from vivavoce.training.token_task import TokenTask

RECIPE = {
    "system": "prosodic",
    "sample_rate": 16000,
    "tokenizers": {"units": {"kind": "integers", "size": 6, "rate": 50, "end": True}},
    "streams": {
        "units": {"tokenizer": "units"},
        "duration": {"width": 1, "clock": {"of": "units", "ratio": 1}},
        "pitch": {"width": 1, "clock": {"of": "units", "ratio": 1}},
    },
    "stages": [
        {
            "name": "lm",
            "tasks": {"continue": {
                "given": ["units[:prompt]", "duration[:prompt]", "pitch[:prompt]"],
                "fills": ["units", "duration", "pitch"],
            }},
            "layout": {"kind": "multi-stream", "delays": {"units": 0, "duration": 1, "pitch": 1}},
            "backbone": {"layers": 1, "width": 32, "heads": 2, "feedforward": 64},
            "heads": {
                "units": "linear", "duration": {"kind": "regression", "loss": "l1"}, "pitch": {"kind": "density"},
            },
            "decode": {"length": "units"},
        }
    ],
    "interaction": {"kind": "offline"},
}


def build(**changes):
    return assemble(read_recipe(RECIPE, "full", changes), seed=1)


def cells(rows: int = 16, seed: int = 0) -> Cells:
    """Units that count up; a duration that hangs on its unit, a pitch that is noise of a known scale around it."""
    random = np.random.default_rng(seed)
    lengths = torch.from_numpy(random.integers(4, 9, rows))
    longest = int(lengths.max())
    units = torch.stack([(torch.arange(longest + 1) + int(random.integers(6))) % 6 for _ in range(rows)])
    duration = 0.5 * units[:, :longest, None] + 1
    pitch = units[:, :longest, None] - 2.5 + 0.25 * torch.from_numpy(random.laplace(size=(rows, longest, 1)))
    units = torch.where(torch.arange(longest + 1) < lengths[:, None], units, 6)  # the end
    sizes = {"units": lengths + 1, "duration": lengths, "pitch": lengths}
    return Cells({"units": units[:, None]}, sizes, frames={"duration": duration.float(), "pitch": pitch.float()})


def column(*values: float) -> np.ndarray:
    """Frames of width 1."""
    return np.array(values, np.float32)[:, None]


@pytest.mark.parametrize("family", ["laplace", "normal"])
@pytest.mark.parametrize("learned", [False, True])
def test_densities_are_those_of_torch(family, learned):
    head = DensityHead(8, 3, family, learned)
    parameters, frames = 2 * torch.randn(5, 3 * (1 + learned)), torch.randn(5, 3)
    centre, scale = (parameters[:, :3], parameters[:, 3:].exp()) if learned else (parameters, torch.ones(5, 3))
    theirs = {"laplace": torch.distributions.Laplace, "normal": torch.distributions.Normal}[family](centre, scale)
    torch.testing.assert_close(head.log_density(parameters, frames).float(), theirs.log_prob(frames).sum(-1))
    rows = torch.arange(20_000)
    wide = head.draw(parameters[:1].expand(len(rows), -1), 0.5, rows, torch.zeros_like(rows))
    spread = 0.5 * scale[0] * (math.sqrt(2) if family == "laplace" else 1)
    assert torch.allclose(wide.mean(0), centre[0], atol=0.05 * float(scale[0].max()))
    assert torch.allclose(wide.std(0), spread, rtol=0.05)
    assert torch.equal(head.draw(parameters, 0.0, rows[:5], rows[:5]), centre)


def test_the_loss_is_cross_entropy_and_the_absolute_error_with_their_weights():
    model = build()
    task = TokenTask("t", model.system, lambda step: cells(), loss_weights={"duration": 0.5, "pitch": 0.0})
    batch = task.batch(0, 0, 1)
    with torch.no_grad():
        loss = task.loss(batch, 0)
        predictions = model.system(batch.cells, "continue")
    nats = predictions["units"].logits[0].log_softmax(-1)
    here = predictions["units"].loss[..., 0]
    ce = -nats[here].gather(1, predictions["units"].targets[..., 0][here][:, None])
    (part,) = scored(predictions["duration"])
    error = (part.logits - part.targets).abs()[:, 0]
    torch.testing.assert_close(density_error(part), error)
    frames = batch.cells.frames["duration"]
    lengths = batch.cells.lengths["duration"]
    goals = torch.cat([frames[row, :n, 0] for row, n in enumerate(lengths.tolist())])
    assert torch.equal(part.targets[:, 0], goals), "every duration is learned once, in its own place"
    total = float(ce.sum() + 0.5 * error.sum()) / (len(ce) + 0.5 * len(error))
    assert float(loss["loss"]) == pytest.approx(total, rel=1e-5)
    assert float(loss["duration"]) == pytest.approx(float(error.mean()), rel=1e-5)


def test_it_learns_and_generates_what_it_has_learned():
    model = build(**{"stages.lm.decode.sampling": {"temperature": 0}})
    task = TokenTask("t", model.system, lambda step: cells(16, step), held_out=lambda n: cells(16, 999))
    before = {name: value for name, value in task.evaluate(0).items()}
    optimizer = torch.optim.AdamW(model.system.stage.parameters(), lr=1e-2)
    for step in range(150):
        optimizer.zero_grad()
        task.loss(task.batch(step, 0, 1), step)["loss"].backward()
        optimizer.step()
    after = task.evaluate(0)
    assert after["units_nats"] < 0.5 * before["units_nats"] and after["duration_nats"] < 0.15
    assert after["pitch_nats"] < 1 + math.log(0.25) + 0.25, "near the entropy of the noise, less log 2"
    prompt = {"units": [3, 4], "duration": column(2.5, 3.0), "pitch": column(0.5, 1.5)}
    found = model.fill("continue", prompt, length={"units": 8})
    units, duration, pitch = (found[name] for name in ("units", "duration", "pitch"))
    assert units[0, :4].tolist() == [3, 4, 5, 0], "it counts up"
    assert duration.shape == pitch.shape == (units.shape[1], 1)
    assert np.allclose(duration[:2], prompt["duration"]) and np.allclose(pitch[:2], prompt["pitch"])
    assert np.abs(duration[:4, 0] - (0.5 * units[0, :4] + 1)).max() < 0.4, "a duration is that of its unit"
    assert np.abs(pitch[:4, 0] - (units[0, :4] - 2.5)).max() < 1


def test_generation_is_the_teacher_forced_centre_in_any_company():
    model = build(**{"stages.lm.decode.sampling": {"temperature": 1.0}})
    for parameter in model.system.stage.parameters():
        parameter.data.mul_(1.5)
    model.system.stage.linear["units"][0].bias.data[6] = -9.0  # no end
    prompts = [
        {"units": [1, 2], "duration": column(1, 1), "pitch": column(0, 0)},
        {"units": [4], "duration": column(1), "pitch": column(0)},
    ]
    together = model.fill("continue", prompts, length={"units": 7}, seed=[5, 6])
    alone = model.fill("continue", prompts[1], length={"units": 7}, seed=6)
    for name in ("units", "duration", "pitch"):
        assert np.allclose(together[1][name], alone[name], atol=1e-5)
    assert len({float(v) for v in together[0]["pitch"][2:, 0]}) > 3
    again = model.fill("continue", prompts[1], length={"units": 7}, seed=7)
    assert not np.allclose(again["pitch"][1:3], alone["pitch"][1:3])
    cold = build(**{"stages.lm.decode.sampling": {"temperature": 0}})
    out = cold.fill("continue", prompts[0], length={"units": 7})
    given = Cells(
        {"units": torch.tensor(out["units"])[None]},
        {name: torch.tensor([out["units"].shape[1]]) for name in ("units", "duration", "pitch")},
        frames={name: torch.tensor(out[name])[None] for name in ("duration", "pitch")},
    )
    with torch.no_grad():
        predictions = cold.system(given, "continue")
    (part,) = scored(predictions["duration"])
    assert torch.allclose(part.logits[2:], part.targets[2:], atol=1e-4)
    assert not torch.allclose(part.logits[:2], part.targets[:2]), "the prompt is not the model's"


def test_a_follower_ends_with_its_leader_at_the_end_token():
    model = build(**{"stages.lm.decode.sampling": {"temperature": 1.0}})
    model.system.stage.linear["units"][0].bias.data[6] = 1.0  # the end is likely
    lengths = set()
    for seed in range(6):
        out = model.fill("continue", {}, seed=seed)
        assert len(out["duration"]) == len(out["pitch"]) == out["units"].shape[1]
        lengths.add(out["units"].shape[1])
    assert len(lengths) > 2


def test_rows_of_different_length_have_no_padding():
    model = build(**{"stages.lm.tasks.sing": {"given": ["units"], "fills": ["pitch"]}})
    long, short = model.fill("sing", [{"units": [1, 2, 3, 4]}, {"units": [5, 0]}], seed=[1, 2])
    assert long["pitch"].shape == (4, 1) and short["pitch"].shape == (2, 1) and np.isfinite(long["pitch"]).all()
    assert np.allclose(short["pitch"], model.fill("sing", {"units": [5, 0]}, seed=2)["pitch"], atol=1e-5)


def test_densities_are_reported_apart_from_probabilities():
    model = build()
    row = [("units", [1, 2], True), ("duration", column(1, 2), True)]
    found = model.loglik(row)
    assert set(found) == {"units", "duration/density"} and found["duration/density"][1] == 2
    with torch.no_grad():
        given = Cells({"units": torch.tensor([[[1, 2]]])}, {"units": torch.tensor([2]), "duration": torch.tensor([2])},
                      frames={"duration": torch.tensor([[[1.0], [2.0]]])})  # fmt: skip
        (part,) = scored(model.system(given)["duration"])
    by_hand = -float((part.logits - part.targets).abs().sum()) - 2 * math.log(2)
    assert found["duration/density"][0] == pytest.approx(by_hand, abs=1e-5)


def test_saved_and_loaded_it_is_the_same(tmp_path):
    model = build()
    model.save(tmp_path)
    again = vivavoce.load(tmp_path)
    one, other = (m.fill("continue", {}, length={"units": 5}, seed=2) for m in (model, again))
    assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages.lm.heads.pitch": {"kind": "linear"}}, "heads.pitch: kind 'linear': a stream of frames is"),
        ({"stages.lm.heads.pitch": {"kind": "regression", "loss": "l3"}}, "heads.pitch.loss: 'l3' is none of l1, l2"),
        ({"stages.lm.heads.pitch": {"kind": "density", "family": "cauchy"}}, "heads.pitch: family 'cauchy'"),
        ({"stages.lm.heads.pitch": {"kind": "density", "scale": 1}}, "heads.pitch: .*scale"),
        ({"stages.lm.heads.units": {"kind": "density"}}, "heads.units: kind 'density' is unknown"),
    ],
)
def test_a_wrong_head_says_where(changes, message):
    with pytest.raises(RecipeError, match=message):
        build(**changes)


def test_preferences_are_of_tokens():
    from vivavoce.training.preferences import row_logprobs

    model = build()
    predictions = model.system(cells(2), "continue")
    with pytest.raises(RequestError, match=r"loss_weights\.duration: a density is no probability"):
        row_logprobs(predictions, 2)
    assert row_logprobs(predictions, 2, {"duration": 0, "pitch": 0}).counts.tolist() == predictions["units"].loss.sum(
        (1, 2)).tolist()  # fmt: skip
    assert StreamSpec("x").levels == 1 and make_density("regression", 4, "x", 2, {}).learned is False
