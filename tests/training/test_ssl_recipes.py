"""Every shipped recipe of an encoder: its smoke size learns, is the same when it was stopped in between, and gives
features and units."""

import numpy as np
import pytest
import torch

import vivavoce
from proves import proves
from vivavoce.nn.weights import read_safetensors
from vivavoce.schema import read_recipe
from vivavoce.training import RunDirectory
from vivavoce.training.metrics import read_metrics
from vivavoce.training.recipes import train_recipe

SMALL = ("hubert-small", "best-rq-small", "wav2vec2-small", "dinosr-small")
RECIPES = (
    *SMALL, "hubert", "wav2vec2", "wavlm", "mt4ssl", "data2vec", "data2vec2", "dinosr", "best-rq", "usm",
    "nest-rq", "apc", "vq-apc", "tera", "spin", "cpc", "wav2vec", "decoar2", "w2v-bert",
    "mr-hubert", "wavlablm", "mae-ast", "audio-mae", "eat", "beats",
    "atst", "atst-clip", "byol-a", "m2d2", "dino-utterance",
    "lighthubert", "speechflow", "uniwav",
)  # fmt: skip
UNPROVED = (*SMALL, "best-rq", "vq-apc", "atst-clip")  # no rows of the atlas
ROWS = {"speechflow": "codec/speechflow", "uniwav": "codec/uniwav"}  # ids of two tables


@pytest.fixture(autouse=True)
def no_reports(monkeypatch):
    """Pictures of curves take longer than the training of these sizes, and are tested elsewhere."""
    monkeypatch.setattr("vivavoce.training.report.write_report", lambda run: None)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Three speakers say something like vowels: tones over noise that change every tenth of a second."""
    folder = tmp_path_factory.mktemp("corpus")
    chance = np.random.default_rng(0)
    for speaker in (1, 2, 3):
        place = folder / str(speaker) / "5"
        place.mkdir(parents=True)
        lines = []
        for number in range(2):
            pitch = np.repeat(chance.uniform(150, 900, 20), 1600)
            wave = 0.2 * np.sin(2 * np.pi * np.cumsum(pitch) / 16000) + 0.01 * chance.standard_normal(32000)
            name = f"{speaker}-5-{number:04d}"
            vivavoce.write(place / f"{name}.flac", vivavoce.Audio(wave[None].astype(np.float32), 16000))
            lines.append(f"{name} A TONE\n")
        (place / f"{speaker}-5.trans.txt").write_text("".join(lines))
    return folder


def small(name, corpus, **more):
    """The smoke size on `corpus`, one of whose speakers is held out."""
    recipe = read_recipe(name, "smoke")
    data = {"kind": "recordings", "corpora": [str(corpus)], "held_out": ["librispeech_3"]}
    training = []
    for phase in recipe.training:
        plain = phase.model_dump(mode="json", exclude_defaults=True)
        training.append({**plain, "data": data, **(more if phase.objective.kind != "kmeans" else {})})
    return read_recipe(name, "smoke", {"training": training})


def learns(name, corpus, tmp_path):
    """Train the smoke size; the run is a model that hears, and its units are what its k-means has found."""
    run = train_recipe(small(name, corpus, settings={"log_every": 1}, steps=3), tmp_path / name)
    lines = [line for line in read_metrics(run.metrics) if "loss" in line]
    assert len(lines) >= 3 and all(np.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in lines)
    assert any("evaluate/loss" in line for line in read_metrics(run.metrics)), "held-out speakers are asked"
    model = vivavoce.load(run.path)
    before = vivavoce.build(small(name, corpus).model_dump(mode="json", exclude_defaults=True))
    mine, theirs = (m.system.codec.units.encoder.state_dict() for m in (model, before))
    changed = [key for key, value in mine.items() if not torch.equal(value, theirs[key])]
    assert changed, "the encoder has learned"
    audio = vivavoce.read(next(corpus.rglob("3-5-0000.flac")))
    assert "features" in model.verbs
    encoder = model.system.codec.units.encoder
    frames = model.features(audio, layer=1 if encoder.layers else None)
    assert frames.values.shape == (model.system.codec.frames(32000), encoder.width)
    assert np.isfinite(frames.values).all() and frames.values.std(0).mean() > 1e-3
    tokenizer = vivavoce.load_tokenizer(run.path)
    codes = tokenizer.encode(torch.from_numpy(audio.samples)[None])
    assert codes.shape == (1, 1, len(frames.values)) and len(codes.unique()) > 2
    return changed


def recipe_test(name):
    def test(corpus, tmp_path):
        changed = learns(name, corpus, tmp_path)
        if "spin" in name:
            assert all(key.startswith("blocks.1.") for key in changed), "only the last block learns"

    test.__doc__ = f"{name}'s smoke size learns, and gives features and units."
    return proves(ROWS.get(name, name), "recipe", "features")(test) if name not in UNPROVED else test


for _name in RECIPES:
    globals()[f"test_{_name.replace('-', '_')}_gives_features_that_it_has_learned"] = recipe_test(_name)


@pytest.mark.parametrize(
    "name, number", [("hubert", 0), ("dinosr", 0), ("dino-utterance", 0), ("beats", 2), ("lighthubert", 0)]
)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(name, number, corpus, tmp_path):
    """Labels, teacher and clusters come back from the checkpoint, a tokenizer from the phase before."""
    *before, phase = [phase.name for phase in read_recipe(name).training[: number + 1]]
    optimizer = {"learning_rate": 1e-3, "schedule": "constant"}
    runs = []
    for folder, budgets in (("whole", (4,)), ("parts", (2, 4))):
        for earlier in before:
            train_recipe(small(name, corpus, steps=2, optimizer=optimizer), tmp_path / folder, phase=earlier)
        for steps in budgets:
            run = train_recipe(small(name, corpus, steps=steps, optimizer=optimizer), tmp_path / folder, phase=phase)
        runs.append(read_safetensors(RunDirectory(run.path).weights(phase)["codec"]))
    learned = [key for key in runs[0] if key.startswith("units.encoder")]
    assert learned and all(torch.equal(runs[0][key], runs[1][key]) for key in learned)
