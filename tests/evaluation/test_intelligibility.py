"""The `speak` task: a good voice passes, one that says something else or nothing does not; controls in the same run."""

import numpy as np
import pytest

from peers import peer
from vivavoce.audio import Audio
from vivavoce.data import flite
from vivavoce.data.sums import all_answers
from vivavoce.evaluation import evaluate, task

peer("pocketsphinx")
needs_flite = pytest.mark.skipif(flite.program() is None, reason="the program 'flite' is not installed")
SOME = all_answers()[5::17]


class Speaker:
    """Says what it is told by one of flite's voices, or `instead` of it."""

    verbs = ("fill",)

    def __init__(self, instead=None):
        self.instead = instead

    def fill(self, name, given):
        from vivavoce.data.synthesis import synthesize

        assert name == "speak"
        if self.instead == "":
            return {"audio": Audio(np.zeros((1, 8000), np.float32), 16000)}
        speech = synthesize(self.instead or given["text"], "flite:rms")
        return {"audio": Audio(speech.samples, speech.sample_rate)}


@needs_flite
@pytest.mark.parametrize("instead,right", [(None, {len(SOME)}), ("two plus two is four", {0, 1}), ("", {0})])
def test_what_is_heard_is_what_was_asked_for(instead, right):
    results = evaluate(Speaker(instead), task("intelligibility", sentences=SOME))
    # One sentence instead of all: the recogniser, which can only choose among them, may take it for one of them.
    assert results[0].metric == "sentences heard" and results[0].count == len(SOME)
    assert round(results[0].value * len(SOME) / 100) in right
    controls = {r.metric: r for r in results[1:]}
    assert controls["control: natural"].reached and controls["control: silent"].value == 0
    assert controls["control: shuffled"].value <= 50  # few sentences here; all 110 are held to 15 %


def test_without_flite_the_controls_say_so(monkeypatch):
    monkeypatch.setattr(flite, "program", lambda: None)
    made = task("intelligibility", sentences=["seven"])
    scored = []
    results = made.summarize(scored)
    assert results[-1].metric == "controls" and "not installed" in results[-1].note
