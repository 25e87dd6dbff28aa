"""Turn-taking on constructed sound: the perfect answerer, the silent, the hasty, the talker; controls; what is due."""

import json
import math

import numpy as np
import pytest

import vivavoce
from vivavoce.audio import Audio, write
from vivavoce.data.clips import Word
from vivavoce.dialogue import DuplexOutput
from vivavoce.errors import DataError, RequestError
from vivavoce.evaluation import evaluate, task
from vivavoce.evaluation.two_channels import asked_of, pieces, read_dialogues, sounding

RATE, FRAME = 16_000, 1280
TURNS = [(0.5, 1.7), (4.0, 6.1), (8.5, 9.4)]  # of the user


def hum(seconds, spans, hertz=200):
    time = np.arange(round(seconds * RATE)) / RATE
    wave = np.zeros(len(time), np.float32)
    for start, end in spans:
        wave[round(start * RATE) : round(end * RATE)] = 0.1
    return wave * np.sin(2 * np.pi * hertz * time).astype(np.float32)


def dialogue(folder, name, shift=0.0, gap=0.4, words=True, seconds=14.0, turns=TURNS):
    """Turns of the user, each answered after `gap` seconds for one second."""
    user = [(start + shift, end + shift) for start, end in turns]
    mine = [(end + gap, end + gap + 1.0) for _, end in user]
    write(folder / f"{name}.wav", Audio(np.stack([hum(seconds, mine, 300), hum(seconds, user)]), RATE))
    rows = [["yes", list(span), "SPEAKER_MAIN"] for span in mine]
    rows += [["what?", list(span), "SPEAKER_OTHER"] for span in user] if words else []
    (folder / f"{name}.json").write_text(json.dumps({"alignments": rows}))
    return folder / f"{name}.wav"


class Answerer:
    """Hears a frame, and speaks for `lasts` frames once the user has been quiet for `waits` frames."""

    sample_rate, verbs = RATE, {"duplex": "native"}

    def __init__(self, waits=4, lasts=10, always=False):
        self.waits, self.lasts, self.always, self.fingerprint = waits, lasts, always, f"{waits} {lasts} {always}"

    def duplex_rows(self, rows):
        return Rows(self, rows)


class Rows:
    frame_size = FRAME

    def __init__(self, model, rows):
        self.model, self.quiet, self.left = model, [None] * rows, [0] * rows

    def reset(self, row, seed=0):
        self.quiet[row], self.left[row] = None, 0

    def step(self, frames, active):
        return [self._one(row, frame) if on else None for row, (frame, on) in enumerate(zip(frames, active))]

    def _one(self, row, frame):
        if np.abs(frame[-160:]).max() > 0.01:
            self.quiet[row] = 0
        elif self.quiet[row] is not None:
            self.quiet[row] += 1
        if self.quiet[row] == self.model.waits:
            self.left[row], self.quiet[row] = self.model.lasts, None
            text = "Yes."
        else:
            text = ""
        speaks = self.left[row] > 0 or self.model.always
        self.left[row] -= speaks
        return DuplexOutput(hum(FRAME / RATE, [(0, 1)], 300) if speaks else np.zeros(FRAME, np.float32), text, "", {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("dialogues")
    for name, shift in (("a", 0.0), ("b", 1.9), ("c", 0.7)):
        dialogue(where, name, shift)
    return where


def run(model, folder, **settings):
    settings = {"controls": "", **settings}
    return {(r.metric, r.group): r for r in evaluate(model, task("turn_taking", **settings), folder)}


def test_the_perfect_answerer_has_all_turns_and_the_gap_of_the_data(folder):
    found = run(Answerer(), folder, controls="exchanged")
    answered = found["turns answered", "model"]
    assert (answered.value, answered.count, answered.reached) == (100, 9, True) and answered.low > 60
    # quiet for four frames, and played a frame after: 0.32 s and what the turn's end has of its last frame
    assert found["gap, median", "data"].value == pytest.approx(0.4, abs=0.011)
    assert found["gap, median", "model"].value == pytest.approx(0.4, abs=0.1)
    off = found["gap, off the data's", "model"]
    assert off.value == pytest.approx(abs(found["gap, median", "model"].value - 0.4), abs=0.011) and off.reached
    assert found["turns broken into", "model"].value == 0 and found["of turns, talked over", "model"].value == 0
    assert found["answers in the data's words", "model"].value == 100
    other = found["turns answered", "exchanged"]
    assert other.value < 50 and other.count == 9
    ahead = found["answered, ahead", "of exchanged"]
    assert ahead.value == pytest.approx(100 - other.value) and ahead.low > 0 and ahead.reached


def test_a_slow_one_answers_late_and_a_too_slow_one_never(folder):
    slow = run(Answerer(waits=8), folder)
    assert slow["turns answered", "model"].value == 100
    late = slow["gap, median", "model"].value - run(Answerer(), folder)["gap, median", "model"].value
    assert late == pytest.approx(4 * FRAME / RATE, abs=0.02) and not slow["gap, off the data's", "model"].reached
    assert run(Answerer(waits=14), folder)["turns answered", "model"].value == 0
    assert run(Answerer(waits=14), folder, within=1.5)["turns answered", "model"].value == 100


def test_silence_answers_nothing_and_endless_talk_neither(folder):
    silent = run(Answerer(lasts=0), folder)
    assert silent["turns answered", "model"].value == 0 and silent["turns answered", "model"].high < 40
    assert math.isnan(silent["gap, median", "model"].value) and silent["gap, off the data's", "model"].count == 0
    talk = run(Answerer(always=True), folder)
    assert talk["turns answered", "model"].value == 0 and talk["of turns, talked over", "model"].value > 95


def test_who_speaks_into_the_turn_breaks_in(tmp_path):
    """The user pauses for half a second in a turn; who waits for less takes it for the end."""
    path = dialogue(tmp_path, "a")
    user = [(0.5, 1.2), (1.7, 2.6)]  # six whole frames are quiet between
    write(path, Audio(np.stack([hum(6, [(3.0, 4.0)], 300), hum(6, user)]), RATE))
    rows = [["so", list(user[0]), "SPEAKER_OTHER"], ["what?", list(user[1]), "SPEAKER_OTHER"]]
    rows += [["five", [3.0, 4.0], "SPEAKER_MAIN"]]
    path.with_suffix(".json").write_text(json.dumps({"alignments": rows}))
    hasty = run(Answerer(waits=2, lasts=3), tmp_path)
    assert hasty["turns broken into", "model"].value == 100 and hasty["turns answered", "model"].value == 100
    assert hasty["of turns, talked over", "model"].value == pytest.approx(100 * 0.24 / 2.1, abs=6)
    patient = run(Answerer(waits=7), tmp_path)
    assert patient["turns broken into", "model"].value == 0 and patient["turns answered", "model"].count == 1
    assert patient["answers in the data's words", "model"].value == 0


def test_only_turns_that_the_recording_answers_are_due(tmp_path):
    user, mine = [(0.5, 1.5), (3.0, 3.4), (5.0, 6.0)], [(2.0, 4.0), (5.9, 7.0)]
    words = [Word("Seven.", 2.0, 2.5), Word("eight", 5.9, 6.5)]
    due = asked_of(user, mine, words, early=0.2, within=1.0)
    assert [(turn.start, turn.limit, turn.words) for turn in due] == [(0.5, 2.5, "seven"), (5.0, 7.0, "eight")]
    assert asked_of(user, mine, [], early=0.0, within=1.0)[-1].start == 0.5  # the last answer came too soon
    dialogue(tmp_path, "told")
    (told,) = read_dialogues(tmp_path, -45, 0.2, 1.0)
    assert [turn.start for turn in told.asked] == [start for start, _ in TURNS]
    assert np.array(told.answers) == pytest.approx(np.array([(end + 0.4, end + 1.4) for _, end in TURNS]), abs=0.011)


def test_turns_are_found_by_voice_where_no_words_tell(tmp_path):
    from vivavoce.audio.voice_activity import speech_segments

    speech = vivavoce.read("examples/recordings/sentence-librispeech.wav").mono().resample(RATE).samples[0][: 3 * RATE]
    user = np.concatenate([np.zeros(RATE), speech, np.zeros(3 * RATE)]).astype(np.float32)
    end = speech_segments(Audio(user[None], RATE), pad=0.0)[-1][1]
    mine = hum(len(user) / RATE, [(end + 0.5, end + 1.5)])
    write(tmp_path / "a.wav", Audio(np.stack([mine, user]), RATE))
    (tmp_path / "a.json").write_text('{"alignments": []}')
    (turn,) = read_dialogues(tmp_path, -45, 0.2, 1.0)[0].asked
    assert turn.end == pytest.approx(end, abs=0.01) and 0.8 < turn.start < end and turn.words == ""


def test_clicks_are_no_speech_and_short_pauses_are():
    wave = hum(3, [(0.2, 0.25), (1.0, 1.3), (1.5, 1.9)])
    assert np.array(pieces(sounding(wave, RATE, -45))) == pytest.approx(np.array([(1.0, 1.9)]), abs=0.011)
    assert sounding(wave, RATE, -15) == []


def test_the_untrained_control_has_the_ears_and_the_voice(tmp_path):
    from vivavoce.evaluation.turn_taking import untrained

    model = vivavoce.build("moshi-small", size="smoke")
    for tensor in model.system.parameters():
        tensor.data.add_(0.01)
    other = untrained(model)
    mine, theirs = model.system.state_dict(), other.system.state_dict()
    differs = {name for name in mine if not (mine[name] == theirs[name]).all()}
    assert differs and all(name.startswith("stage.") for name in differs)
    dialogue(tmp_path, "a", seconds=2.0, turns=[(0.2, 0.8)])
    found = run(model, tmp_path, controls="untrained")
    assert found["turns answered", "untrained"].count == found["turns answered", "model"].count == 1
    with pytest.raises(RequestError, match="needs a model with a recipe"):
        run(Answerer(), tmp_path, controls="untrained")


def test_answers_are_kept_and_refusals_help(folder, tmp_path):
    work = task("turn_taking", controls="")
    first = evaluate(Answerer(), work, folder, tmp_path / "out")
    voice = vivavoce.read(next((tmp_path / "out").rglob("*.flac")))
    assert voice.duration == pytest.approx(14.08, abs=0.1)
    assert evaluate(Answerer(), work, folder, tmp_path / "out") == first
    bad_ones = (({"controls": "loud"}, "no control 'loud'"), ({"within": 0.0}, "within 0"), ({"early": -1.0}, "early"))
    for bad, says in bad_ones:
        with pytest.raises(RequestError, match=says):
            task("turn_taking", **bad)
    with pytest.raises(RequestError, match="--data"):
        evaluate(Answerer(), work)
    with pytest.raises(DataError, match="no stereo wav"):
        evaluate(Answerer(), work, tmp_path / "out")
    alone = tmp_path / "alone"
    alone.mkdir()
    dialogue(alone, "a")
    with pytest.raises(DataError, match="no other user"):
        evaluate(Answerer(), task("turn_taking", controls="exchanged"), alone)
    write(alone / "a.wav", Audio(np.zeros((2, 14 * RATE), np.float32), RATE))
    with pytest.raises(DataError, match="no dialogue in which the left channel answers"):
        evaluate(Answerer(), work, alone)
    write(alone / "a.wav", Audio(np.zeros((1, 14 * RATE), np.float32), RATE))
    with pytest.raises(DataError, match=r"1 dialogue.s. cannot be used; first: a: .*channel"):
        evaluate(Answerer(), work, alone)
