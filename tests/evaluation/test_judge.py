"""The closed-vocabulary judge: hears good voices, not shuffled ones, not silence, not noise."""

import numpy as np
import pytest

from peers import peer
from vivavoce.audio import Audio
from vivavoce.data import flite
from vivavoce.data.sums import all_answers
from vivavoce.errors import RequestError
from vivavoce.evaluation.judge import ClosedVocabulary, controls, shuffled, silent

peer("pocketsphinx")


@pytest.fixture(scope="module")
def judge():
    return ClosedVocabulary(all_answers())


@pytest.mark.skipif(flite.program() is None, reason="the program 'flite' is not installed")
def test_controls_hold(judge):
    hits = controls(judge, all_answers()[3::9], "flite:slt")
    assert np.mean(hits["natural"]) >= 0.95
    assert np.mean(hits["shuffled"]) <= 0.15
    assert np.mean(hits["silent"]) == 0.0


def test_silence_noise_and_nothing_are_no_sentence(judge):
    rng = np.random.default_rng(0)
    for samples in (np.zeros(16000), rng.standard_normal(16000) * 0.05, np.zeros(10), np.zeros(0)):
        assert judge(Audio(samples.astype(np.float32), 16000)) is None


def test_shuffling_leaves_no_neighbours_together():
    ramp = Audio(np.repeat(np.arange(20, dtype=np.float32) / 20, 1600), 16000)
    order = (shuffled(ramp, 3).samples[0, ::1600] * 20).round().astype(int)
    assert sorted(order) == list(range(20)) and 1 not in np.diff(order)
    assert np.array_equal(shuffled(ramp, 3).samples, shuffled(ramp, 3).samples)
    assert len(shuffled(Audio(np.zeros(3, np.float32), 16000))) == 3
    assert np.all(silent(ramp).samples == 0) and len(silent(ramp)) == len(ramp)


def test_words_that_the_recogniser_does_not_know_are_named():
    with pytest.raises(RequestError, match="dictionary lacks xqzzy"):
        ClosedVocabulary(["seven", "xqzzy"])
