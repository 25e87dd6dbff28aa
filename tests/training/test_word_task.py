"""An encoder that learns words by itself: where their labels stand, and that it learns what they sound like."""

import numpy as np
import pytest
import torch

from made_conversations import maker
from vivavoce.data.spectral import PowerClip
from vivavoce.data.sums import DIGITS
from vivavoce.encoders.causal_mel import CausalMelEncoder
from vivavoce.training import PhaseSettings, RunDirectory, train_phase
from vivavoce.training.word_task import WordTask

KNOWN = (*DIGITS, "plus")


@pytest.fixture
def task():
    encoder = CausalMelEncoder(mels=40, stem=24, widths=(24, 32, 48))
    power = np.zeros((50, 129), np.float32)
    power[5:45, ::7] = 1
    river = PowerClip(power, "river", 5, 45, "cat", "made")
    conversations = maker(encoder.front, 129, other=[river] * 3)(
        frames=48, dictation=1, vocal_tract=(1, 1), equaliser=1, room=0, snr=(20, 40), level=(-20, -10)
    )
    return WordTask("hear", encoder, conversations, (*KNOWN, "river"), KNOWN, 6, wait=0.12, held_out=conversations)


def test_labels_stand_where_each_word_has_been_heard_whole(task):
    batch = task.batch(2, 0, 1)
    for row in range(6):
        conversation = task.conversations(12 + row)
        labels = batch["words"][row].numpy()
        digits = np.where(labels <= len(KNOWN), labels, 0)
        names = [KNOWN[i - 1] for i in digits if i]
        said = [text for kind, *_, text in conversation.events if kind == "word"]
        assert names == said[: len(names)] and np.array_equal(digits > 0, conversation.heard > 0)
    assert (batch["words"] == len(KNOWN) + 1).any()  # other words have classes of their own
    assert batch["user"].shape == (6, 48 * 8, 129)


def test_processes_share_the_batch(task):
    shares, whole = [task.batch(2, rank, 3) for rank in range(3)], task.batch(2, 0, 1)
    assert all(torch.equal(torch.cat([share[key] for share in shares]), whole[key]) for key in whole)
    assert len(whole["user"]) == 6


def test_answers_are_no_words_of_the_user(task):
    usual = maker(task.encoder.front, 129)(frames=48, dictation=0, told=1)
    alone = task._collate([usual(1)])  # a silent user; the answers' words are digits too
    assert not alone["words"].any() and any(kind == "answer" for kind, *_ in usual(1).events)


def test_the_encoder_learns_words_and_its_head_stays_behind(task, tmp_path):
    before = {key: value.clone() for key, value in task.encoder.state_dict().items()}
    with torch.no_grad():
        first = task.evaluate(0)
    settings = PhaseSettings(name="hear", steps=100, optimizer={"learning_rate": 5e-3, "warmup": 5}, log_every=20)
    run = RunDirectory.open(tmp_path)
    train_phase(task, run, settings)
    with torch.no_grad():
        last = task.evaluate(100)
    assert last["which"] > first["which"] + 0.2 and 0 <= last["false_words"] < 0.1
    assert set(run.weights("hear")) == {"encoder", "word_head"}
    assert any(not torch.equal(value, before[key]) for key, value in task.encoder.state_dict().items())


def test_no_word_weighs_as_much_as_it_is_told_to(task):
    batch = task.batch(0, 0, 1)
    task.encoder.eval()
    task.mask = 0.0
    with torch.no_grad():
        task.head.weight.zero_()
        task.head.bias.zero_()
        task.head.bias[0] = 3.0
        quiet = float(-torch.log_softmax(task.head.bias, 0)[0])
        word = float(-torch.log_softmax(task.head.bias, 0)[1])
        share = float((batch["words"] > 0).float().mean())
        for pad in (0.25, 1.0):
            task.pad_weight = pad
            expected = (word * share + pad * quiet * (1 - share)) / (share + pad * (1 - share))
            assert float(task.loss(batch, 0)["loss"]) == pytest.approx(expected, rel=1e-4)
