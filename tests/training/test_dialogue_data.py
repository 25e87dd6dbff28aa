"""Moshi learns from recordings: stereo dialogues, diarised ones, single streams with text; what is learned, and how."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import vivavoce
from proves import proves
from vivavoce.audio import Audio, write
from vivavoce.data.clips import Clip, Segment, Word, write_manifest
from vivavoce.errors import DataError, RecipeError
from vivavoce.schema import read_recipe
from vivavoce.systems import assemble
from vivavoce.training.assembly import plan_for, task_for
from vivavoce.training.initialise import unit_variance
from vivavoce.training.recipes import show_batches, train_recipe

RATE, LEVELS, PAD, END = 24000, 8, 3, 0
WEIGHTS = {"text": 1, "voice": [100, *[1] * 7]}


def sound(seconds, seed):
    """Two channels that take turns, each second anew."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * RATE)) / RATE
    tones = [np.sin(2 * np.pi * t * rng.integers(150, 900)) * 0.4 + rng.normal(0, 0.05, len(t)) for _ in range(2)]
    return np.stack([tones[0] * (t % 1 < 0.5), tones[1] * (t % 1 >= 0.5)]).astype(np.float32)


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    """Four dialogues of 2 s as moshi-finetune takes them, beside one whose JSON is missing, and one that is mono."""
    folder = tmp_path_factory.mktemp("talks")
    for n in range(4):
        write(folder / f"d{n}.wav", Audio(sound(2.0, n), RATE))
        said = [["hi", [0.16, 0.4], "SPEAKER_MAIN"], ["you", [0.6, 0.9], "U"], ["do", [1.2, 1.4], "SPEAKER_MAIN"]]
        (folder / f"d{n}.json").write_text(json.dumps({"alignments": said}))
    return folder


def phase(data, **more):
    return {
        "name": "finetune", "trains": "dialogue", "tasks": {"duplex": 1}, "steps": 10, "batch": 4,
        "objective": {"kind": "next_token", "mean": "streams", "pad_weight": 0.5}, "loss_weights": WEIGHTS,
        "optimizer": {"learning_rate": 2e-2, "warmup": 0, "schedule": "constant"}, "data": data,
        "settings": {"log_every": 1}, **more,
    }  # fmt: skip


def recipe_of(data, **more):
    return read_recipe("moshi", "smoke", {"training": [phase(data, **more)]})


def hearing(recipe):
    """The system, its codec so that different sounds have different codes."""
    model = assemble(recipe)
    noise = torch.randn(1, 1, RATE, generator=torch.Generator().manual_seed(0)) * 0.2
    with torch.no_grad():
        unit_variance(model.system.codec, lambda: model.system.codec.encode(noise))
    return model


def task_of(data, **more):
    recipe = recipe_of(data, **more)
    return task_for(recipe, recipe.training[0], hearing(recipe))


def stereo(talks, **options):
    return {"kind": "stereo_dialogues", "path": str(talks), "seconds": 3, **options}


def spelled(task, word):
    return task.system.vocabularies["text"].encode(word)


@proves("moshi", "recipe", "trains")
def test_a_fine_tuning_run_learns_and_goes_on_where_it_was(talks, tmp_path):
    train_recipe(recipe_of(stereo(talks), steps=3), tmp_path)
    train_recipe(recipe_of(stereo(talks, held_out=str(talks)), steps=10), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line for line in lines if "loss" in line]
    assert [line["step"] for line in losses] == [*range(1, 11)] and {"text", "voice"} <= set(losses[0])
    assert losses[-1]["loss"] < 0.9 * losses[2]["loss"] < 0.9 * losses[0]["loss"]
    assert lines[-1]["evaluate/text_nats"] < losses[0]["text"]
    assert vivavoce.load(tmp_path).name == "moshi"


def test_what_is_learned_stands_in_exact_frames(talks):
    task = task_of(stereo(talks))
    batch = task.batch(0, 0, 1)
    assert batch.cells.lengths["text"].tolist() == [25] * 4
    text = batch.cells.values["text"][0, 0, :25].tolist()
    expected = [PAD] * 25
    for begin, word in ((2, "hi"), (15, "do")):  # 0.16 s and 1.2 s at 12.5 Hz
        ids = spelled(task, word)
        expected[begin - 1] = END
        expected[begin : begin + len(ids)] = ids
    assert text == expected
    codec = task.system.codec
    left, right = (vivavoce.read(talks / f"{batch.cells.names[0]}.wav").samples[c] for c in (0, 1))
    for name, channel in (("voice", left), ("user", right)):
        codes = codec.encode(torch.from_numpy(channel)[None, None])[0]
        assert torch.equal(batch.cells.values[name][0, :, :25], codes[:LEVELS])
        assert len(codes.unique()) > LEVELS


def test_the_loss_is_that_of_moshi_finetune(talks):
    """text: cross entropy weighted by 1, pads and ends of pads by 0.5; audio: the first level by 100; the sum."""
    task = task_of(stereo(talks))
    batch = task.batch(0, 0, 1)
    predictions = task.predict(batch)
    (text,), (voice,) = predictions["text"], predictions["voice"]
    goal = text.targets[:, 0]
    weight = torch.where((goal == PAD) | (goal == END), 0.5, 1.0) * text.loss[:, 0]
    nats = F.cross_entropy(text.logits[0].float(), goal.clamp(min=0), reduction="none")
    text_loss = (weight * nats).sum() / weight.sum()
    total, mass = 0.0, 0.0
    for level in range(LEVELS):
        weight = (100.0 if level == 0 else 1.0) * voice.loss[:, level]
        nats = F.cross_entropy(voice.logits[level].float(), voice.targets[:, level].clamp(min=0), reduction="none")
        total, mass = total + (weight * nats).sum(), mass + weight.sum()
    assert set(goal.tolist()) >= {PAD, END} and bool((goal > PAD).any())
    ours = float(task.loss(batch, 0)["loss"].detach())
    assert ours == pytest.approx(float((text_loss + total / mass).detach()), rel=1e-5)
    task.pads = {}
    assert float(task.loss(batch, 0)["loss"].detach()) != pytest.approx(ours, rel=1e-3)


def test_a_batch_is_shown_as_it_is_learned(talks):
    lines = list(show_batches(recipe_of(stereo(talks))))
    title = next(line for line in lines if line.startswith("row 0"))
    assert title.startswith("row 0 (d") and "mean over streams" in lines[1]
    text, first = (next(line for line in lines if line.startswith(f"  lane {n} ")) for n in (0, 1))
    assert "t.0=_*0.5 " in text and "t.2=_* " in text and "t.3='h'* " in text and "*100 " in first
    user = next(line for line in lines if line.startswith("  lane 9 "))
    assert "u0.0=" in user and "*" not in user


def test_text_is_left_out_and_comes_late_by_chance(talks):
    hidden = task_of(stereo(talks, text_mask=1.0))
    batch = hidden.batch(0, 0, 1)
    assert bool((batch.cells.values["text"][..., :25] == -1).all())
    losses = hidden.loss(batch, 0)
    assert "text" not in losses and "voice" in losses and bool(torch.isfinite(losses["loss"]))
    late = task_of(stereo(talks, text_delay=0.4)).batch(0, 0, 1).cells.values["text"][0, 0]
    assert late[:5].tolist() == [-1] * 5 and late[6] == END and late[7] > PAD  # 0.16 s + 0.4 s: frame 7
    drawn = task_of(stereo(talks, text_delay=[-0.6, 0.6], text_mask=0.3))
    first, again = (drawn.batch(5, 0, 1).cells.values["text"] for _ in range(2))
    assert torch.equal(first, again)
    several = torch.cat([drawn.batch(step, 0, 1).cells.values["text"][:, 0] for step in range(8)])
    assert len({tuple(row.tolist()) for row in several}) > 8
    masked = (several[:, :25] == -1).all(1).float().mean()
    assert 0.05 < float(masked) < 0.6
    shown = "\n".join(show_batches(recipe_of(stereo(talks, text_delay=0.4))))
    assert "t.0=- " in shown and "t.5=_*0.5" in shown


def test_what_is_left_out_reaches_no_prediction(talks):
    """With the text left out, the voice is predicted as if there were none: whatever stood there."""
    task = task_of(stereo(talks))
    batch = task.batch(0, 0, 1)
    whole = task.predict(batch)["voice"][0].logits
    batch.cells.values["text"] = torch.full_like(batch.cells.values["text"], -1)
    without = task.predict(batch)["voice"][0].logits
    assert not torch.allclose(whole[0], without[0], atol=1e-4)


def test_a_store_is_made_once(talks, tmp_path, monkeypatch):
    folder = tmp_path / "tokens"
    first = task_of(stereo(talks, store=str(folder))).batch(0, 0, 1).cells
    memory = task_of(stereo(talks)).batch(0, 0, 1).cells
    assert first.names == memory.names
    for name in ("text", "voice", "user"):
        assert torch.equal(first.values[name], memory.values[name])
    recipe = recipe_of({"kind": "dialogues", "store": str(folder), "sides": "right", "seconds": 3})
    model = hearing(recipe)
    monkeypatch.setattr(type(model.system.codec), "encode", None)
    other = task_for(recipe, recipe.training[0], model).batch(0, 0, 1).cells
    number = other.names.index(f"{first.names[0]}, channel 1")
    assert torch.equal(other.values["voice"][number], first.values["user"][0])
    assert set(other.values["text"][number, 0].tolist()) >= {PAD, END, *spelled_of(model, "you")}


def spelled_of(model, word):
    return model.system.vocabularies["text"].encode(word)


def test_bad_recordings_are_left_out_and_named(talks, tmp_path, capsys):
    for name in ("d0", "d1"):
        for suffix in (".wav", ".json"):
            (tmp_path / f"{name}{suffix}").write_bytes((talks / f"{name}{suffix}").read_bytes())
    (tmp_path / "d1.json").write_text('{"alignments": [["late", [7, 8], "SPEAKER_MAIN"]]}')
    task = task_of(stereo(tmp_path))
    assert task.batch(0, 0, 1).cells.names == ("d0",)
    said = capsys.readouterr().err
    assert "finetune: skipped d1: " in said and "word 0, 'late', from 7 to 8 s: outside of the sound" in said
    assert "finetune: 1 skipped, 1 recordings to learn from" in said
    (tmp_path / "d0.json").write_text("[]")
    with pytest.raises(DataError, match=r"training.finetune.data: nothing to learn from in .*first of 2 skipped: d0"):
        task_of(stereo(tmp_path))


def test_a_word_that_cannot_be_written_is_named(talks, capsys):
    data = read_recipe("moshi", "smoke").model_dump(mode="json", exclude_defaults=True)
    data["tokenizers"]["words"] = {"kind": "words", "words": ["hi"]}
    recipe = read_recipe({**data, "training": [phase(stereo(talks))]})
    with pytest.raises(DataError, match=r"skipped: d0: the word 'do' cannot be written: 'do' is not in the vocabulary"):
        task_for(recipe, recipe.training[0], assemble(recipe))


ANN = Segment(0.0, 1.0, "hi you", "ann", 0, (Word("hi", 0.16, 0.4), Word("you", 0.48, 0.8)))
BOB = Segment(1.2, 2.0, "do", "bob", 0, (Word("do", 1.28, 1.6),))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write(folder / "m.wav", Audio(sound(2.0, 5).sum(0, keepdims=True), RATE))
    write(folder / "n.wav", Audio(sound(1.0, 6)[:1], RATE))
    clips = [
        Clip("m", "m.wav", 2.0, "l", "s", segments=(ANN, BOB), root=str(folder)),
        Clip("n", "n.wav", 1.0, "l", "s", text="hi", speaker="ann", root=str(folder)),
    ]
    write_manifest(folder / "corpus.jsonl", clips)
    return folder / "corpus.jsonl"


def test_diarised_recordings_are_learned_from_each_speaker(manifest, tmp_path, capsys):
    (tmp_path / "m.rttm").write_text(
        "SPEAKER m 1 0.0 1.0 <NA> <NA> A <NA> <NA>\nSPEAKER m 1 1.2 0.8 <NA> <NA> B <NA> <NA>\n"
    )
    for more in ({}, {"rttm": str(tmp_path)}):
        task = task_of({"kind": "dialogues", "corpora": [str(manifest)], "sides": "left", "seconds": 3, **more})
        cells = task.batch(0, 0, 1).cells
        assert cells.lengths["voice"].tolist() == [25, 25]
        ann, bob = np.argsort(cells.names)
        assert sorted(cells.names) == (["m#A", "m#B"] if more else ["m#ann", "m#bob"])
        assert torch.equal(cells.values["voice"][ann][:, :12], cells.values["user"][bob][:, :12])
        assert not torch.equal(cells.values["voice"][ann], cells.values["voice"][bob])
        text = cells.values["text"][:, 0]
        assert text[ann, 2 : 2 + len(spelled(task, "hi"))].tolist() == spelled(task, "hi")
        assert text[bob, 15] == END and text[bob, :15].eq(PAD).all()  # 1.28 s lies in frame 16
        assert "skipped n: clip 'n': words without times; 'vivavoce data align' finds them" in capsys.readouterr().err


SPEECH = {"stages.dialogue.tasks.speech": {
    "fills": ["text", "voice"],
    "layout": {"kind": "multistream", "streams": ["text", "voice"], "delays": {"text": 0, "voice": [0, *[2] * 7]}},
}}  # fmt: skip


def test_pre_training_on_one_stream_of_speech(manifest, tmp_path):
    """Nothing is heard: the user's lanes are empty, whatever tasks of dialogue come later."""
    data = {"kind": "aligned_speech", "corpora": [str(manifest)], "seconds": 3, "text_delay": [-0.6, 0.6]}
    one = phase(data, tasks={"speech": 1}, steps=5)
    recipe = read_recipe("moshi", "smoke", {**SPEECH, "training": [{**one, "name": "pretrain"}]})
    train_recipe(recipe, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
    lines = list(show_batches(recipe))
    assert "task speech, in its own layout" in lines[1] and not any(" u0." in line for line in lines)
    second = next(line for line in lines if line.startswith("  lane 2 ")).split()
    assert second[2:4] == [".", "."] and second[4].startswith("v1.0=")  # two columns late, as in pre-training


@pytest.mark.parametrize(
    "data, more, message",
    [
        ({"kind": "stereo_dialogues"}, {}, "give path, or a store that holds them"),
        ({"kind": "dialogues", "corpora": 3}, {}, "give corpora"),
        ({"kind": "dialogues", "corpora": ["x"], "sides": "top"}, {}, "sides: 'top' is none of left, right, both"),
        ({"kind": "stereo_dialogues", "path": "x", "sides": "left"}, {}, "unknown sides"),
        ({"kind": "stereo_dialogues", "path": "x", "text_mask": 2}, {}, "text_mask: 2: a number from 0 to 1"),
        ({"kind": "stereo_dialogues", "path": "x", "text_delay": [1, 0]}, {}, r"text_delay: \[1, 0\]: seconds, or"),
        ({"kind": "stereo_dialogues", "path": "x", "crowded": "no"}, {}, "crowded: 'no' is none of push, drop"),
        ({"kind": "stereo_dialogues", "path": "x", "seconds": 0}, {}, "seconds: a window of 0 s"),
        ({"kind": "aligned_speech", "corpora": ["x"]}, {}, "tasks: aligned_speech is one stream of speech"),
        (
            {"kind": "stereo_dialogues", "path": "x"},
            {"objective": {"kind": "next_token", "pad_weight": {"voice": 0.5}}},
            "objective.pad_weight: 'voice' is no text with pads that is filled; there is text",
        ),
        (
            {"kind": "stereo_dialogues", "path": "x"},
            {"objective": {"kind": "next_token", "pad_weight": -1}},
            "objective.pad_weight: -1: a number from 0 on",
        ),
    ],
)
def test_what_a_recipe_gets_wrong_is_said_before_anything_is_read(data, more, message):
    recipe = recipe_of(data, **more)
    with pytest.raises(RecipeError, match=f"training.finetune.*{message}"):
        plan_for(recipe, recipe.training[0], assemble(recipe))


def test_only_full_duplex_systems_learn_dialogues(talks):
    recipe = read_recipe("layout-delay", "smoke")
    other = recipe.training[0].model_copy(update={"data": recipe_of(stereo(talks)).training[0].data})
    with pytest.raises(RecipeError, match="stereo_dialogues train a full-duplex system that writes what it says"):
        plan_for(recipe, other, assemble(recipe))
