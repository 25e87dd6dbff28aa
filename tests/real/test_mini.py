"""The embedded model on shipped recordings of people: it hears, decides, speaks, and keeps still."""

import json
from pathlib import Path

import numpy as np
import pytest

import vivavoce
from vivavoce.data.sums import all_answers
from vivavoce.evaluation.judge import ClosedVocabulary

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RECORDINGS = json.loads((EXAMPLES / "recordings.json").read_text())


@pytest.fixture(scope="module")
def mini():
    return vivavoce.load("mini")


@pytest.fixture(scope="module")
def judge():
    return ClosedVocabulary(all_answers())


def question(name: str) -> vivavoce.Audio:
    return vivavoce.read(EXAMPLES / "recordings" / name)


def test_what_is_forced_into_its_text_is_what_it_says(mini, judge):
    """The voice follows the text stream, not the user: answers forced in silence are heard whole by the recogniser.

    Chance is one in 110; the model card has the share of all answers.
    """
    texts = all_answers()[2::11]
    heard = [judge(mini.fill("speak", {"text": text})["audio"]) for text in texts]
    assert sum(h == t for h, t in zip(heard, texts, strict=True)) >= len(texts) / 2, heard


def test_another_question_another_answer(mini):
    one = mini.reply([("user", question("seven-george.wav"))])
    other = mini.reply([("user", question("three-lucas.wav"))])
    assert one.text and other.text and one.text != other.text
    assert not np.array_equal(one.audio.samples[:, : 16000], other.audio.samples[:, : 16000])


def test_silence_and_noise_get_no_answer(mini):
    rng = np.random.default_rng(0)
    for samples in (np.zeros((1, 48000)), rng.normal(0, 0.01, (1, 48000)), rng.normal(0, 0.1, (1, 48000))):
        reply = mini.reply([("user", vivavoce.Audio(samples.astype(np.float32), 16000))])
        assert reply.text == "" and reply.user_text == ""
        assert np.sqrt(np.mean(reply.audio.samples**2)) < 0.003


def test_transcribe_is_the_users_words(mini):
    assert mini.reply([("user", question("seven-george.wav"))], task="transcribe").text == "seven"


def test_the_answer_does_not_depend_on_the_company(mini):
    """In lockstep with other conversations it says what it says alone."""
    alone = mini.reply([("user", question("seven-george.wav"))])
    samples = question("seven-george.wav").resample(16000).mono().samples[0]
    rows = mini.duplex_rows(3)
    frames = -(-len(samples) // rows.frame_size) + 20
    batch = np.random.default_rng(0).normal(0, 0.05, (3, frames * rows.frame_size)).astype(np.float32)
    batch[1] = 0
    batch[1, : len(samples)] = samples
    words = []
    for i in range(frames):
        outs = rows.step(batch[:, i * rows.frame_size : (i + 1) * rows.frame_size], [True] * 3)
        words.append(outs[1].text)
    assert " ".join(w for w in words if w) == alone.text
