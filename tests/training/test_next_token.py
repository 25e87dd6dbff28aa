"""Next-token training of the full-duplex stage: it learns, masks what was told, and is a pure function of the step."""

from dataclasses import replace

import pytest
import torch

import vivavoce
from made_conversations import maker
from vivavoce.errors import RecipeError
from vivavoce.training import PhaseSettings, RunDirectory, train_phase
from vivavoce.training.next_token import ConversationTask, collate, hide_bands


@pytest.fixture
def task():
    model = vivavoce.build("mini", "smoke")
    make = maker(model.system.encoder.front, 129, codebooks=3, size=16)
    conversations = make(frames=48, told=0.3)
    streams = ("heard", "text", "voice")
    return ConversationTask("t", model.system.encoder, model.system.stage, conversations, streams, 6, held_out=make(48))


def test_the_loss_falls_on_every_stream(task, tmp_path):
    first = {k: float(v.detach()) for k, v in task.loss(task.batch(0, 0, 1), 0).items()}
    settings = PhaseSettings(name="t", steps=30, optimizer={"learning_rate": 3e-3}, log_every=5)
    train_phase(task, RunDirectory.open(tmp_path), settings)
    last = {k: float(v.detach()) for k, v in task.loss(task.batch(0, 0, 1), 30).items()}
    for stream in ("heard", "text", "voice"):
        assert last[stream] < 0.8 * first[stream], stream
    with torch.no_grad():
        figures = task.evaluate(30)
    assert figures["heard_pads"] > 0.9 and 0 <= figures["heard_which"] <= 1 and figures["voice_accuracy"] > 0.2


def test_batches_depend_on_the_step_only_and_ranks_share_them(task):
    assert torch.equal(task.batch(3, 0, 1)["user"], task.batch(3, 0, 1)["user"])
    for step in (0, 3):
        shares, whole = [task.batch(step, rank, 2) for rank in range(2)], task.batch(step, 0, 1)
        assert all(torch.equal(torch.cat([share[key] for share in shares]), whole[key]) for key in whole)
    assert not torch.equal(whole["user"], task.batch(4, 0, 1)["user"]) and len(whole["user"]) == 6
    with pytest.raises(RecipeError, match="a batch of 6 cannot be shared by 4"):
        task.batch(0, 0, 4)


def test_told_text_gives_no_loss_but_its_result_does(task):
    batch = task.batch(0, 0, 1)
    told = collate([c for c in map(task.conversations, range(20)) if c.told][:3])
    assert not told["decided"].all() and told["decided"].any()
    task.stage.eval(), task.encoder.eval()
    read = task.read(told)
    loss = task.stream_loss("text", read, told["decided"])
    changed = replace(read, codes={**read.codes, "text": read.codes["text"].clone()})
    free = ~told["decided"]
    changed.codes["text"][:, 1:, 0][free] = 5
    assert torch.equal(task.stream_loss("text", changed, told["decided"]), loss)
    changed.codes["text"][:, 1:, 0][told["decided"]] = 5
    assert not torch.equal(task.stream_loss("text", changed, told["decided"]), loss)
    assert batch["user"].shape == (6, 48 * 8, 129)


def test_pads_weigh_what_each_stream_says(task):
    batch = task.batch(0, 0, 1)
    task.stage.eval(), task.encoder.eval()
    with torch.no_grad():
        read = task.read(batch)

        def losses(heard, text):
            task.pad_weight = {"heard": heard, "text": text}
            return [float(task.stream_loss(stream, read, batch["decided"])) for stream in ("heard", "text")]

        low, high, mixed = losses(0.1, 0.1), losses(0.9, 0.9), losses(0.1, 0.9)
    assert mixed == [low[0], high[1]] and low[0] != high[0] and low[1] != high[1]
    with pytest.raises(RecipeError, match="herd is not trained"):
        ConversationTask("t", task.encoder, task.stage, task.conversations, ["heard"], 2, pad_weight={"herd": 0.5})


@pytest.mark.parametrize(
    "streams, weights, message",
    [
        (["herd"], {}, "objective.streams: no 'herd' is filled; there is heard, text, voice"),
        (["heard"], {"text": 1}, "loss_weights: text is not trained"),
        (["voice"], {"voice": (1, 1)}, "loss_weights.voice: 2 weights for 3 levels"),
    ],
)
def test_streams_that_are_not_there_are_refused(task, streams, weights, message):
    with pytest.raises(RecipeError, match=f"training.t.{message}"):
        ConversationTask("t", task.encoder, task.stage, task.conversations, streams, 2, loss_weights=weights)


def test_a_share_of_the_voice_is_learned_at_a_time(task, monkeypatch):
    batch, asked = task.batch(0, 0, 1), []
    predict = task.stage.predict
    monkeypatch.setattr(task.stage, "predict", lambda s, r, where: asked.append(where) or predict(s, r, where))
    read = task.read(batch)
    sounding = task.sounding(read)
    for share in (1.0, 0.3):
        task.voice_frames = share
        task.stream_loss("voice", read, batch["decided"])
    whole, some = ((where & sounding).sum() / sounding.sum() for where in asked)
    assert whole == 1 and 0.2 < some < 0.6  # the silent ones are drawn among all
    silent = [int((where & ~sounding).sum()) for where in asked]
    assert silent[0] > 2 * silent[1] > 0


def test_bands_are_hidden_in_as_many_rows_as_asked():
    torch.manual_seed(0)
    power = torch.ones(200, 4, 128)
    assert torch.equal(hide_bands(power, 0.0), power)
    share = (hide_bands(power, 0.5).amin((1, 2)) < 1).float().mean()
    assert 0.5 < share < 0.85  # two bands, each with chance one half, may be empty
