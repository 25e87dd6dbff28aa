"""Preference optimisation: the papers' formulas, the gradient, four kinds of reference, a toy whose margin rises."""

import json
import math

import numpy as np
import pytest
import torch

from vivavoce.data.preferences import Pair, read_pairs, shuffled
from vivavoce.errors import DataError, RecipeError, RequestError
from vivavoce.lm.lora import add_lora
from vivavoce.schema import read_recipe
from vivavoce.systems import assemble
from vivavoce.training.assembly import task_for
from vivavoce.training.preference_task import PreferenceTask
from vivavoce.training.preferences import preference_loss, row_logprobs

KIND = {"flat": "units", "delay": "voice"}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("kind", ["dpo", "ipo", "hinge", "simpo"])
def test_losses_are_the_papers_formulas(kind, normalised):
    beta, margin = 0.3, 0.4
    sums, counts = {"c": -7.0, "r": -5.5, "rc": -6.0, "rr": -8.0}, {"c": 5, "r": 3, "rc": 5, "rr": 3}
    logs = {key: value / counts[key] if normalised else value for key, value in sums.items()}
    d = logs["c"] - logs["r"] - (0 if kind == "simpo" else logs["rc"] - logs["rr"])
    expected = {
        "dpo": -math.log(sigmoid(beta * d)),
        "ipo": (d - 1 / (2 * beta)) ** 2,
        "hinge": max(0.0, 1 - beta * d),
        "simpo": -math.log(sigmoid(beta * d - margin)),
    }[kind]
    tensors = [torch.tensor([logs[key]], dtype=torch.float64) for key in ("c", "r", "rc", "rr")]
    found = preference_loss(kind, *tensors[: 2 if kind == "simpo" else 4], beta=beta, margin=margin)
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_conservative_dpo_and_what_is_missing():
    logs = [torch.tensor([x]) for x in (-2.0, -3.0, -2.5, -2.4)]
    d = 1.0 - (-2.5 + 2.4)
    expected = -0.9 * math.log(sigmoid(0.5 * d)) - 0.1 * math.log(sigmoid(-0.5 * d))
    assert preference_loss("dpo", *logs, beta=0.5, label_smoothing=0.1).item() == pytest.approx(expected, rel=1e-6)
    with pytest.raises(RequestError, match="'dpo' needs a reference"):
        preference_loss("dpo", *logs[:2])
    with pytest.raises(RequestError, match="'dop' is none of dpo"):
        preference_loss("dop", *logs)


def test_the_gradient_of_dpo_is_that_of_its_paper():
    """Equation 4: -beta * sigmoid(r_rejected - r_chosen) * (grad log p(chosen) - grad log p(rejected))."""
    beta, chosen, rejected = 0.7, torch.tensor([-3.0], requires_grad=True), torch.tensor([-2.0], requires_grad=True)
    preference_loss("dpo", chosen, rejected, torch.tensor([-3.5]), torch.tensor([-1.0]), beta=beta).sum().backward()
    wrong = sigmoid(beta * ((-2.0 + 1.0) - (-3.0 + 3.5)))
    assert chosen.grad.item() == pytest.approx(-beta * wrong) and rejected.grad.item() == pytest.approx(beta * wrong)


# -- the task --


def model(kind: str = "dedup", **changes):
    return assemble(read_recipe(f"layout-{kind}", "smoke", changes), seed=2)


def pairs(kind: str = "dedup", count: int = 6, like: int = 3, reference: bool = False) -> list[Pair]:
    """Chosen continuations go up, rejected ones go down; the prompts are random."""
    name, levels = {"dedup": ("units", 1), "delay": ("voice", 4)}[kind]
    made = []
    for number in range(count):
        random = np.random.default_rng(number)
        first = int(random.integers(3, 8))

        def row(ids):
            return {name: np.tile(np.asarray(ids, np.int64), (levels, 1))}

        up, down = [first + 1, first + 2, first + 3], [first - 1, first - 2][: 1 + number % 2]
        prompt = row([*random.integers(0, 9, number % like + 1), first])
        made.append(Pair(prompt, row(up), row(down), (-5.0 - number, -4.0) if reference else None, f"pair {number}"))
    return made


@pytest.mark.parametrize("kind", ["dedup", "delay"])
@pytest.mark.parametrize("pack", [None, 32])
def test_row_log_probabilities_are_those_of_the_verb(kind, pack):
    """In any layout, prompts left out, whether rows are padded or packed."""
    lm = model(kind)
    data = pairs(kind)
    task = PreferenceTask("t", lm.system, data, 6, pack=pack)
    batch = task.batch(0, 0, 1)
    with torch.no_grad():
        found, _ = task.logprobs(batch)
    name = next(iter(lm.system.streams))
    end = lm.system.streams[name].spec.end
    numbers = batch.pairs.tolist()
    assert sorted(numbers) == list(range(6))
    for row, number in enumerate([*numbers, *numbers]):
        pair = data[number]
        after = (pair.chosen if row < 6 else pair.rejected)[name]
        after = after if end is None else np.concatenate([after, np.full((len(after), 1), end)], axis=1)
        scores = lm.loglik([(name, pair.prompt[name], False), (name, after, True)])
        assert float(found.sums[row]) == pytest.approx(sum(total for total, _ in scores.values()), abs=1e-3)
        assert int(found.counts[row]) == sum(count for _, count in scores.values())


def test_weights_of_levels_weigh_log_probabilities():
    lm = model("delay")
    task = PreferenceTask("t", lm.system, pairs("delay"), 6, loss_weights={"voice": [1.0, 0.0, 0.0, 0.0]})
    batch = task.batch(0, 0, 1)
    first = task.logprobs(batch)[0]
    predictions = task.predict(batch)
    only = row_logprobs(predictions, 12, {"voice": [2.0, 0, 0, 0]})
    torch.testing.assert_close(only.sums, 2 * first.sums)
    torch.testing.assert_close(only.of(True), first.of(True))
    with pytest.raises(RequestError, match="no stream is scored"):
        row_logprobs(predictions, 12, {"voice": 0})


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "dpo"},
        {"loss": "dpo", "length_normalised": True, "beta": 1.0},
        {"loss": "dpo", "reference": "precomputed"},
        {"loss": "dpo", "pack": 24},
        {"loss": "ipo"},
        {"loss": "hinge"},
        {"loss": "simpo", "beta": 2.0, "margin": 0.5},
        {"loss": "dpo", "likelihood": 1.0},
    ],
    ids=lambda options: " ".join(str(value) for value in options.values()),
)
def test_the_margin_of_the_chosen_rises_also_on_pairs_that_were_not_learned(options):
    lm = model()
    options = {"beta": 0.5, **options}
    data = pairs(count=24)
    task = PreferenceTask("t", lm.system, data[:18], 6, held_out=data[18:], **options)
    optimizer = torch.optim.AdamW(lm.system.stage.parameters(), lr=3e-3)
    first = None
    for step in range(25):
        optimizer.zero_grad()
        losses = task.loss(task.batch(step, 0, 1), step)
        losses["loss"].backward()
        optimizer.step()
        first = first or {key: float(value.detach()) for key, value in losses.items()}
    last = {key: float(value.detach()) for key, value in losses.items()}
    # At the start the network is its reference: no margin.
    assert "simpo" in options.values() or (abs(first["margin"]) < 1e-4 and first["accuracy"] <= 0.7)
    assert last["margin"] > first["margin"] + 0.5 and last["accuracy"] == 1.0 and last["loss"] < first["loss"]
    with torch.no_grad():
        figures = task.evaluate(25)
    assert options.get("reference") == "precomputed" or (figures["accuracy"] == 1.0 and figures["margin"] > 0.3)
    if options.get("likelihood"):
        assert last["nats"] < first["nats"]


def test_every_reference_gives_the_same_loss_as_a_frozen_copy():
    data = pairs()
    lm = model()
    frozen = PreferenceTask("t", lm.system, data, 6)
    scored = PreferenceTask("t", lm.system, data, 6, reference="precomputed")
    batch = frozen.batch(1, 0, 1)
    with torch.no_grad():
        start = scored.loss(scored.batch(1, 0, 1), 0)["loss"]  # computes the reference, before anything is learned
        sums = frozen.logprobs(frozen.batch(1, 0, 1))[0].sums
    assert float(start) == pytest.approx(math.log(2), abs=1e-5)
    number = {int(n): row for row, n in enumerate(batch.pairs)}
    told = [
        Pair(p.prompt, p.chosen, p.rejected, (float(sums[number[n]]), float(sums[number[n] + 6])), p.place)
        for n, p in enumerate(data)
    ]
    given = PreferenceTask("t", lm.system, told, 6, reference="given")
    with torch.no_grad():
        for parameter in lm.system.stage.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter, generator=None))
        losses = [float(task.loss(task.batch(1, 0, 1), 1)["loss"]) for task in (frozen, scored, given)]
        normalised = PreferenceTask("t", lm.system, told, 6, reference="given", length_normalised=True)
        same = normalised.batch(1, 0, 1)
        means = [float(normalised.loss(same, 1)["loss"]), float(_normalised(frozen, batch))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) == pytest.approx(losses[2], rel=1e-4)
    assert means[0] == pytest.approx(means[1], rel=1e-4) and abs(losses[0] - math.log(2)) > 1e-3
    again = PreferenceTask("t", lm.system, data, 6, reference="precomputed")
    again.load_state_dict(scored.state_dict())  # what a resumed run does
    with torch.no_grad():
        assert float(again.loss(again.batch(1, 0, 1), 1)["loss"]) == pytest.approx(losses[1], rel=1e-5)


def _normalised(task, batch):
    task.normalised = True
    return task.loss(batch, 1)["loss"]


def test_adapters_switched_off_are_the_reference_and_only_they_may_train():
    lm = model()
    task = PreferenceTask("t", lm.system, pairs(), 6, reference="adapters")
    batch = task.batch(0, 0, 1)
    with pytest.raises(RecipeError, match="'adapters', but the phase has none"):
        task.loss(batch, 0)
    before = task.logprobs(batch)[0].sums.detach()
    add_lora(lm.system.stage, {"targets": ["backbone.*(qkv|inner)"], "rank": 2})
    optimizer = torch.optim.AdamW([p for p in lm.system.stage.parameters() if p.requires_grad], lr=1e-2)
    for step in range(15):
        optimizer.zero_grad()
        losses = task.loss(task.batch(step, 0, 1), step)
        losses["loss"].backward()
        optimizer.step()
    assert float(losses["margin"]) > 0.05
    torch.testing.assert_close(task.referred(batch).sums, before, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(task.logprobs(batch)[0].sums, before, atol=1e-2)
    lm.system.stage.begin.requires_grad_(True)
    with pytest.raises(RecipeError, match="'begin' trains too"):
        task.loss(batch, 0)


def test_pairs_are_shared_and_each_comes_once_an_epoch():
    task = PreferenceTask("t", model().system, pairs(count=10), 4)
    for step in (0, 7):
        whole, halves = task.batch(step, 0, 1), [task.batch(step, rank, 2) for rank in (0, 1)]
        assert torch.equal(torch.cat([half.pairs for half in halves]), whole.pairs)
    seen = [n for step in range(5) for n in shuffled(10, step, 4)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10)) and seen[:10] != seen[10:]


# -- where pairs come from --


def write(path, lines):
    path.write_text("\n".join(json.dumps(line) if isinstance(line, dict) else line for line in lines) + "\n")
    return path


def test_json_lines_and_a_store_hold_the_same_pairs(tmp_path):
    from vivavoce.data.store import TokenWriter
    from vivavoce.data.tokens import StreamSpec, TokenRow

    lines = [
        {"prompt": [5, 6], "chosen": [7, 8, 9], "rejected": [4]},
        {"prompt": [1], "chosen": [2], "rejected": [3, 3]},
    ]
    plain = read_pairs(write(tmp_path / "pairs.jsonl", lines), "units")
    writer = TokenWriter(tmp_path / "store", {"units": StreamSpec("hubert", "abc", (50.0,), 16000, size=16)})
    rows = []
    for number, line in enumerate(lines):
        for side in ("rejected", "chosen"):
            ids = np.array([line["prompt"] + line[side]])
            extra = {"pair": f"p{number}", "preferred": side == "chosen", "prompt": len(line["prompt"])}
            row = TokenRow(f"{number}{side}", 1.0, "CC0", "made", {"units": [ids]}, extra=extra)
            rows.append(row)
    writer.add([*rows, TokenRow("alone", 1.0, "CC0", "made", {"units": [np.array([[1]])]})])
    writer.finish()
    for ours, theirs in zip(plain, read_pairs(tmp_path / "store"), strict=True):
        for side in ("prompt", "chosen", "rejected"):
            assert np.array_equal(getattr(ours, side)["units"], getattr(theirs, side)["units"])
    assert plain[0].chosen["units"].tolist() == [[7, 8, 9]] and plain[1].reference is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: no JSON"),
        ({"prompt": [1], "chosen": [1]}, "line 1: a mapping with prompt, chosen and rejected"),
        ({"chosen": {"units": [1]}, "rejected": {"voice": [1]}}, "other streams"),
        ({"chosen": [1.5], "rejected": [1]}, r"chosen.units: integers \[T\]"),
        ({"chosen": [1], "rejected": "no"}, "rejected: ids by stream are expected"),
        ({"chosen": [1], "rejected": [2], "better": 1}, "unknown 'better'"),
        ({"chosen": [1], "rejected": [2], "reference": [1]}, "reference: two log-probabilities"),
        ({"chosen": [[1, 2], [3]], "rejected": [2]}, "levels of different length"),
    ],
)
def test_a_wrong_line_says_what(tmp_path, line, message):
    with pytest.raises(DataError, match=message):
        read_pairs(write(tmp_path / "pairs.jsonl", [line]), "units")


def recipe(path, **changes):
    return read_recipe(
        "layout-dedup",
        "smoke",
        {
            "training.patterns.objective": {"kind": "preference", "loss": "dpo"},
            "training.patterns.data": {"kind": "preferences", "path": str(path)},
            "training.patterns.steps": 3,
            "training.patterns.batch": 2,
            **changes,
        },
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.patterns.objective.loss": "rlhf"}, "objective.loss: 'rlhf' is none of dpo"),
        ({"training.patterns.objective.beta": 0}, "objective.beta: 0: a number, greater than 0"),
        ({"training.patterns.objective.label_smoothing": 0.5}, "label_smoothing: 0.5: a number, at least 0, less than"),
        ({"training.patterns.objective.beta": "x"}, "objective.beta: 'x': a number"),
        ({"training.patterns.objective.beat": 1}, "objective: unknown beat; there is loss, beta"),
        ({"training.patterns.objective.reference": "none"}, "reference: 'none': simpo takes none"),
        ({"training.patterns.data.held_out": 3}, r"data: give held_out \(a text\)"),
        ({"training.patterns.tasks": {"sing": 1}}, "no task 'sing'"),
        ({"training.patterns.lora": {"targets": ["nowhere"]}}, "lora.targets: 'nowhere' matches no matrix"),
        ({"training.patterns.lora": {"rank": 2}}, "lora: targets: Field required|lora.*targets"),
    ],
)
def test_a_wrong_recipe_says_where(tmp_path, changes, message):
    from vivavoce.training.recipes import check_phases, phase_settings

    made = recipe(tmp_path / "none.jsonl", **changes)
    with pytest.raises(RecipeError, match=message):
        check_phases(made, {"patterns": phase_settings(made.training[0])})


def test_ids_that_do_not_fit_are_refused_before_training(tmp_path):
    made = recipe(write(tmp_path / "p.jsonl", [{"prompt": [1], "chosen": [99], "rejected": [2]}]))
    with pytest.raises(DataError, match=r"line 1: chosen\.units: ids from 99 to 99; 'units' has 0 to 16"):
        task_for(made, made.training[0], assemble(made))


def test_a_phase_of_preference_with_adapters_ends_in_a_plain_model_directory(tmp_path):
    """The run's model has the adapters merged; alone they lie beside the checkpoint; a killed phase goes on."""
    from safetensors.torch import load_file

    import vivavoce
    from vivavoce.lm.lora import load_lora, merge_lora
    from vivavoce.training.recipes import train_recipe

    lines = [{"prompt": [5, n], "chosen": [7, 8, 9], "rejected": [4]} for n in range(4)]
    path = write(tmp_path / "pairs.jsonl", lines)
    lora = {"training.patterns.lora": {"targets": ["stage.backbone.*qkv"], "rank": 2, "alpha": 4}}
    adam = {"training.patterns.optimizer": {"learning_rate": 1e-2, "warmup": 0, "schedule": "constant"}}
    straight = train_recipe(recipe(path, **lora, **adam), tmp_path / "a")
    short = recipe(path, **lora, **adam, **{"training.patterns.steps": 1})
    train_recipe(short, tmp_path / "b")
    resumed = train_recipe(recipe(path, **lora, **adam), tmp_path / "b")
    ours, theirs = (load_file(run.path / "model.safetensors") for run in (straight, resumed))
    assert ours.keys() == theirs.keys() and not any("lora" in name for name in ours)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    start = assemble(short)
    changed = {name for name, tensor in start.system.state_dict().items() if not torch.equal(tensor, ours[name])}
    assert changed == {"stage.backbone.transformer.layers.0.attention.qkv.weight"}
    load_lora(torch.nn.ModuleDict({"stage": start.system.stage}), load_file(
        straight.checkpoints("patterns") / "adapters.safetensors"))  # fmt: skip
    merge_lora(start.system.stage)
    assert torch.allclose(start.system.state_dict()[changed.pop()], vivavoce.load(straight.path).system.state_dict()[
        "stage.backbone.transformer.layers.0.attention.qkv.weight"], atol=1e-6)  # fmt: skip
