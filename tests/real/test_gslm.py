"""Textless models from recordings to report, at smoke size: units, training, evaluation, by a reader's commands."""

import json

import numpy as np
import pytest

import vivavoce
from proves import proves
from vivavoce.cli import main
from vivavoce.data.recorded_tokens import clips_of, played, record, split_speakers
from vivavoce.data.store import TokenStore
from vivavoce.errors import DataError, RecipeError, RequestError
from vivavoce.evaluation import task
from vivavoce.evaluation.harness import collect
from vivavoce.evaluation.unit_likelihood import MODEL, ngrams
from vivavoce.schema import read_recipe
from vivavoce.training.metrics import read_metrics
from vivavoce.training.recipes import check_phases, phase_settings, train_recipe
from vivavoce.training.unit_plans import recorded


@pytest.fixture
def run(capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as left:
            main([*map(str, arguments)])
        return left.value.code, capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def trained(pack, tmp_path_factory):
    """gslm-small at smoke size, trained."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIVAVOCE_TEST_DATA", str(pack))
        folder = tmp_path_factory.mktemp("gslm") / "run"
        train_recipe(read_recipe("gslm-small", "smoke", {"training.lm.steps": 60}), folder)
        return folder


@pytest.fixture(autouse=True)
def _pack(pack, monkeypatch):
    monkeypatch.setenv("VIVAVOCE_TEST_DATA", str(pack))


def test_one_command_trains_and_one_evaluates(trained, pack, run, tmp_path):
    metrics = read_metrics(trained / "metrics.jsonl")
    fitted = [row for row in metrics if row["phase"] == "units"]
    assert len(fitted) == 1 and 4 < fitted[0]["evaluate/perplexity"] <= 16
    losses = [row["loss"] for row in metrics if row["phase"] == "lm" and "loss" in row]
    assert losses[-1] < losses[0] - 0.2
    code, said = run("eval", trained, "--data", pack, "--set", "unit_likelihood.shortest=1.0", "--json",
                     "--out", tmp_path / "eval", "--device", "cpu")  # fmt: skip
    assert code == 0, said.err
    rows = [json.loads(line) for line in said.out.splitlines()]
    costs = {row["group"]: row["value"] for row in rows if row["metric"] == "nats a unit"}
    assert set(costs) > {MODEL} and [name[0] for name in costs if name != MODEL] == list("12345")
    assert all(0.5 < value < np.log(16) + 0.2 for value in costs.values())
    saved = [row for row in rows if row["metric"] == "nats saved"]
    assert [row["group"].split("-")[0] for row in saved[:3]] == [f"against {order}" for order in (1, 2, 3)]
    for row in saved:
        assert row["value"] == pytest.approx(costs[row["group"].removeprefix("against ")] - costs[MODEL])
    pairs = {(row["metric"], row["group"].split(" ")[0]): row for row in rows if row["unit"] == "%"}
    assert pairs["pieces exchanged within the clip", "2-gram"]["value"] == 50.0, "pairs of neighbours tell nothing"
    assert pairs["pieces exchanged within the clip", MODEL]["count"] >= 8
    ahead, mine, theirs = (
        pairs[f"pieces exchanged within the clip{more}", group]
        for more, group in ((", ahead", "of"), ("", MODEL), ("", "3-gram"))
    )
    overlap = mine["low"] <= theirs["high"] and theirs["low"] <= mine["high"]
    assert ahead["note"].endswith("do not lie apart" if overlap else "intervals lie apart")
    # the same command goes on with finished work
    assert run("train", trained, "--device", "cpu")[0] == 0
    assert len(read_metrics(trained / "metrics.jsonl")) == len(metrics)


def test_the_evaluation_measures_what_it_says(trained, pack):
    """A trigram in the model's place costs what the trigram costs, and wins as often."""
    model = vivavoce.load(trained)
    train, apart = recorded(model, model.recipe.phase("lm").data.options, pack)
    assert {row.speaker[0] for row in apart.rows} == {"an4_mwhw", "psx_cards"}
    assert not {row.speaker[0] for row in train.rows} & {"an4_mwhw", "psx_cards"}
    assert len(train) == 2 * len({row.id.split("@")[0] for row in train.rows})
    trigram = ngrams(train.rows, "units", 16, 3)["3-gram kneser-ney"]

    class Trigram:
        recipe, system, tokens, sample_rate = model.recipe, model.system, model.tokens, model.sample_rate
        verbs, fingerprint = {"loglik": "native"}, "trigram"

        def loglik(self, items, vocabulary):
            assert vocabulary == "stream"
            return [{"units": (float(trigram.scores(row[0][1]).sum()), len(row[0][1]))} for row in items]

    asked = task("unit_likelihood", shortest=1.0, order=3)
    scored, failed = collect(Trigram(), asked, pack)
    assert not failed
    rows = {(row.metric, row.group): row for row in asked.summarize(scored)}
    best = next(group for metric, group in rows if metric == "nats a unit" and group.startswith("3-gram"))
    mine = sum(one.scores[f"{MODEL}/nats"] for one in scored)
    assert mine == pytest.approx(sum(one.scores["3-gram kneser-ney/nats"] for one in scored))
    assert rows["nats a unit", best].value <= rows["nats a unit", MODEL].value + 1e-9
    for kind in ("within", "between"):
        assert [one.scores[f"{MODEL}/{kind}"] for one in scored] == [
            one.scores[f"3-gram kneser-ney/{kind}"] for one in scored
        ]


def test_speakers_are_kept_apart_and_speeds_are_other_speakers(pack):
    clips = clips_of(["an4"], pack)
    kept, apart = split_speakers(clips, ["an4_fash"])
    assert len(kept) + len(apart) == len(clips) and {clip.speaker for clip in apart} == {"an4_fash"}
    with pytest.raises(DataError, match="no clip is by 'nobody'"):
        split_speakers(clips, ["nobody"])
    audio = clips[0].load(16000).mono()
    faster = played(audio, 1.25)
    assert faster.sample_rate == 16000
    assert faster.samples.shape[1] == pytest.approx(audio.samples.shape[1] / 1.25, abs=2)

    def tokens(heard):
        return {"units": np.zeros((1, heard.samples.shape[1] // 320), np.int64)}

    found = record(clips[:2], tokens, 16000, (1.0, 0.8))
    assert [row.id for row in found.rows] == [n for clip in clips[:2] for n in (clip.id, f"{clip.id}@0.8")]
    assert found.lengths("units").tolist()[1] == pytest.approx(found.lengths()[0] / 0.8, abs=2)
    assert found.rows[1].duration == pytest.approx(clips[0].duration / 0.8)
    empty = record(clips[:1], lambda a: {"units": np.zeros((1, 0), np.int64)}, 16000)
    assert not empty.rows and "too short" in empty.skipped[0][1]


@pytest.mark.parametrize("name", [
    pytest.param("gslm", marks=proves("gslm", "recipe")),
    pytest.param("twist", marks=proves("twist", "recipe")),
    pytest.param("pgslm", marks=proves("pgslm", "recipe")),
    pytest.param("slam", marks=proves("slamming", "recipe")),
])  # fmt: skip
def test_it_trains_and_speaks(name, pack, tmp_path):
    """Builds, trains all its phases on recordings, goes on with a prompt, and is loaded from its run directory."""
    train_recipe(read_recipe(name, "smoke", {"training.lm.steps": 40}), tmp_path / "run")
    losses = [row["loss"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")
              if row["phase"] == "lm" and "loss" in row]  # fmt: skip
    assert losses[-1] < losses[0] - 0.2
    model = vivavoce.load(tmp_path / "run")
    audio = clips_of(["an4"], pack)[0].load(16000).mono()
    prompt = vivavoce.Audio(audio.samples[:, :8000], 16000)
    said = [model.reply([("user", prompt)], seconds=1.0, seed=seed).audio.samples for seed in range(4)]
    assert 0 < max(wave.shape[1] for wave in said) <= 16000 and all(np.isfinite(wave).all() for wave in said)
    scores = model.loglik([("audio", audio, True)])
    assert set(scores) == set(model.recipe.streams) and all(-10 < total / n < 0 for total, n in scores.values())


def test_tokens_can_stand_in_a_store(pack, tmp_path, run):
    data = {"store": str(tmp_path / "tokens"), "pack": True, "context": 64}
    changes = {"training.lm.data": data, "training.lm.steps": 8, "training.lm.batch": 2}
    recipe = read_recipe("gslm", "smoke", changes)
    train_recipe(recipe, tmp_path / "run")
    store = TokenStore(tmp_path / "tokens")
    clips = clips_of(["an4"], pack)
    assert len(store) == len(clips)
    model = vivavoce.load(tmp_path / "run")
    row = store[0]
    audio = next(clip for clip in clips if clip.id == row.id).load(16000)
    assert np.array_equal(row.streams["units"][0], model.tokens(audio)["units"])
    # the voice was trained behind the units, and they are still the same tokens
    assert TokenStore(tmp_path / "tokens", {"units": model.system.codec})
    for wrong, message in [
        ({"speeds": [1.0, 1.1]}, "leave out speeds"),
        ({"store": None}, "name a folder"),
        ({"corpora": 3}, "a list"),
    ]:
        broken = read_recipe("gslm", "smoke", {**changes, "training.lm.data": {**changes["training.lm.data"], **wrong}})
        with pytest.raises(RecipeError, match=message):
            check_phases(broken, {phase.name: phase_settings(phase) for phase in broken.training})


def test_only_a_system_with_units_is_asked(pack, run):
    code, said = run("eval", "mini", "--task", "unit_likelihood", "--data", pack, "--device", "cpu")
    assert code == 2 and "no phase 'lm'" in said.err
    with pytest.raises(RequestError, match="order"):
        task("unit_likelihood", order=2)  # it is a trigram that is to be beaten
