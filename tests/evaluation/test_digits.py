"""The spoken-digit task: its items are what they claim, and its numbers are right for models whose faults are known."""

import math
import os

import numpy as np
import pytest

from fake_models import FRAME, RATE, Talker
from vivavoce.data.sums import DIGITS
from vivavoce.errors import DataError, RequestError
from vivavoce.evaluation import evaluate, task
from vivavoce.evaluation.conditions import CONDITIONS, coloured_noise, speech_rms
from vivavoce.evaluation.digit_questions import GROUPS, OTHER_SOURCES, Plan, digits, other_speech, sums, voices
from vivavoce.evaluation.questions import TAIL, sound, sounding
from vivavoce.evaluation.quiet import quiet_minute

F = FRAME / RATE


@pytest.fixture(autouse=True)
def _steps_take_no_time(monkeypatch):
    """Room time counts what a step takes here: without it the fake's behaviour is exact on a busy machine too."""
    monkeypatch.setattr("vivavoce.evaluation.calls.perf_counter", lambda: 0.0)


def by(results, metric, group=""):
    return next(r for r in results if r.metric == metric and group in r.group)


def test_digits_are_the_official_test_split(pack):
    items = digits(Plan(data=pack))
    assert len(items) == 250 and len({i.id for i in items}) == 250
    for item in items:
        word, _, take = item.given.parts[0].path.stem.split("_")
        assert DIGITS[int(word)] == item.expected and int(take) < 5


def test_sums_are_of_one_speaker_with_gaps_up_to_half_a_second(pack):
    items = sums(Plan(data=pack))
    assert len(items) == 500 and sums(Plan(data=pack)) == items != sums(Plan(data=pack, seed=1))
    gaps = [item.given.gaps[0] for item in items]
    assert 0 <= min(gaps) < 0.02 and 0.48 < max(gaps) <= 0.5 and np.mean(gaps) == pytest.approx(0.25, abs=0.03)
    for item in items:
        first, second = (part.path.stem.split("_") for part in item.given.parts)
        assert first[1] == second[1] and max(int(first[2]), int(second[2])) < 5
        total = DIGITS.index(item.given.digits[0]) + DIGITS.index(item.given.digits[1])
        assert item.expected.startswith(" plus ".join(item.given.digits) + " is ")
        if total < 10:
            assert item.expected.endswith(DIGITS[total])
    assert len({item.given.digits for item in items}) > 90


def test_a_speaker_that_training_left_out_can_be_asked_alone(pack):
    items = digits(Plan(data=pack, speakers=("theo",), split="all"))
    assert len(items) == 500 and {i.group for i in items} == {"recorded/theo"}
    with pytest.raises(DataError, match="no speaker nobody; it has george"):
        digits(Plan(data=pack, speakers=("nobody",)))
    with pytest.raises(DataError, match="--data"):
        digits(Plan())


def test_other_speech_has_no_number_words_and_no_source_of_training(pack):
    items = other_speech(Plan(data=pack))
    assert len(items) == 300
    assert not {"fsdd", "librispeech_other", "librispeech_tc100", "dialogue_sim"} & set(OTHER_SOURCES)
    said = " ".join(i.given.words.lower() for i in items).split()
    assert not set(said) & {*DIGITS, "eleven", "twenty", "seis", "7"}


def test_a_question_lies_where_its_marks_say(pack):
    item = sums(Plan(data=pack))[7]
    heard = sound(item.given, RATE)
    assert heard.wave.dtype == np.float32 and heard.end == heard.marks[1][2]
    assert heard.marks[0][1] >= item.given.lead
    for _, start, end in heard.marks:
        piece = heard.wave[round(start * RATE) : round(end * RATE)]
        assert np.sqrt(np.mean(piece**2)) > 3 * np.sqrt(np.mean(heard.wave**2) / 3)
    assert np.abs(heard.wave[round(heard.end * RATE) + RATE // 2 :]).max() < 1e-2
    assert len(heard.wave) / RATE >= heard.end + TAIL
    gap = heard.marks[1][1] - heard.marks[0][2]
    assert gap >= item.given.gaps[0] - 1e-3


def test_conditions_do_what_they_say(pack):
    heard = sound(sums(Plan(data=pack))[3].given, RATE)
    clean, rng = heard.wave, np.random.default_rng(0)
    changed = {name: change(clean, RATE, heard.marks, rng) for name, change in CONDITIONS.items()}
    assert all(wave.shape == clean.shape for wave in changed.values())
    assert np.array_equal(changed["16 kHz"], clean)
    assert np.corrcoef(changed["8 kHz"], clean)[0, 1] > 0.98  # the recordings hold nothing above 4 kHz
    assert 20 * math.log10(speech_rms(changed["-45 dBFS"], RATE, heard.marks)) == pytest.approx(-45, abs=0.1)
    assert np.abs(changed["-3 dBFS"]).max() == pytest.approx(10 ** (-3 / 20), rel=1e-3)
    noise = changed["10 dB of noise"] - clean
    ratio = speech_rms(clean, RATE, heard.marks) / np.sqrt(np.mean(noise**2))
    assert 20 * math.log10(ratio) == pytest.approx(10, abs=0.1)
    after = round((heard.end + 0.05) * RATE)
    assert np.abs(changed["small room"][after : after + 1600]).max() > 3 * np.abs(clean[after : after + 1600]).max()


def test_pink_noise_falls_by_three_decibels_an_octave():
    spectrum = np.abs(np.fft.rfft(coloured_noise(1 << 18, RATE, np.random.default_rng(0)))) ** 2
    hertz = np.fft.rfftfreq(1 << 18, 1 / RATE)
    octaves = [10 * np.log10(spectrum[(hertz >= f) & (hertz < 2 * f)].mean()) for f in (100, 200, 400, 800, 1600)]
    assert np.diff(octaves) == pytest.approx(-3.01, abs=0.6)


def test_ten_quiet_minutes_hold_sound_but_no_clipping(pack):
    for number in range(10):
        wave = quiet_minute(number, 0, RATE, 10.0, pack)
        assert wave.shape == (160000,) and wave.dtype == np.float32
        assert np.isfinite(wave).all() and 0 < np.abs(wave).max() <= 1.0
    assert np.array_equal(quiet_minute(4, 0, RATE, 5.0, None), quiet_minute(4, 0, RATE, 5.0, None))


def test_unknown_voices_say_sums_in_three_ways():
    items = voices(Plan())
    kinds = [i.id.split("/")[2] for i in items if i.id.split("/")[2] in ("plain", "plus", "fluent")]
    assert {k: kinds.count(k) for k in set(kinds)} == {"plain": 80, "plus": 80, "fluent": 80}
    assert len(items) == 4 * (30 + 60)
    assert all(sum(i.given.gaps) <= 0.5 for i in items)


def test_a_parrot_of_seven_is_right_one_time_in_ten(pack):
    """Always "seven", 3 frames after silence: digits 10 %, sums 0 %; it starts too early where gaps are long."""
    quick = task("digits", groups="digits,sums", sums=60, rows=8, control=None)
    results = evaluate(Talker("seven", wait=3), quick, pack, limit=10)
    assert by(results, "digits correct", "recorded").value == pytest.approx(10, abs=8)
    assert by(results, "sums correct", "recorded").value == 0
    # The fake voice is a tone, which is no sentence.
    assert by(results, "voice says the text").value == 0
    onset = by(results, "onset", "single digit").value
    assert 3 * F - 0.02 < onset < 5 * F + 0.1
    early = by(results, "answers begun too early")
    gaps = [i.given.gaps[0] for i in sums(Plan(data=pack, sums=60))]
    assert early.value > 0 and early.value <= 100 * np.mean([g > 0.05 for g in gaps])


def test_patience_begins_no_answer_too_early(pack):
    quick = task("digits", groups="sums", sums=30, rows=8, judge=False)
    results = evaluate(Talker("seven", wait=12), quick, pack)
    assert by(results, "answers begun too early").value == 0


def test_a_babbler_says_numbers_to_everybody(pack, monkeypatch):
    monkeypatch.setattr("vivavoce.evaluation.digits.QUIET_BLOCK", 4.0)
    noisy = task("digits", groups="quiet,other", other=20, judge=False)
    results = evaluate(Talker(babble=True), noisy, pack, limit=3)
    assert by(results, "false numbers").value == 100 and by(results, "false numbers").reached is False
    assert by(results, "words said", "quiet").value > 100
    silent = evaluate(Talker(wait=10**6), task("digits", groups="quiet,other", other=20, judge=False), pack, limit=3)
    assert by(silent, "false numbers").value == 0 and by(silent, "words said").value == 0
    assert by(silent, "words said").reached is True


def test_barge_in_and_conditions_have_their_lines(pack):
    some = task("digits", groups="barge-in,conditions", barge_ins=4, each_condition=2, judge=False, sums=40)
    results = evaluate(Talker("one plus two is three", wait=4, yields=2), some, pack)
    stop = by(results, "stop after barge-in")
    assert stop.count >= 2 and F < stop.value < 5 * F
    assert not [r for r in results if r.metric == "points lost"]  # a model that is never right loses nothing


def test_points_lost_are_paired_with_the_same_questions(pack):
    """A model that always says the answer to the only digit asked, but hears nothing below -30 dBFS."""
    some = task("digits", groups="conditions", each_condition=6, judge=False, sums=6)
    items = [i for i in some.items(pack) if "/digit/" in i.id]
    word = items[0].expected
    results = evaluate(Talker(word, wait=4, hears=10 ** (-30 / 20)), some, pack)
    lost = {r.group: r for r in results if r.metric == "points lost"}
    assert list(lost) == list(CONDITIONS)
    assert lost["16 kHz"].value == 0 and lost["-45 dBFS"].value > 0
    asked = [i for i in items if i.group == "condition/as recorded"]
    assert lost["16 kHz"].count == len(asked) + 6


def test_without_the_pack_only_what_needs_no_recordings_is_asked():
    without = task("digits", judge=False)
    items = without.items(None)
    assert {i.group.split("/")[0] for i in items} == {"voice", "quiet"}
    notes = [r for r in without.summarize([]) if r.metric == "left out"]
    assert [r.group for r in notes] == [name for name, (_, needs) in GROUPS.items() if needs]
    with pytest.raises(RequestError, match="has no group colours"):
        task("digits", groups="colours")


def test_unusable_recordings_are_counted_not_fatal(pack, tmp_path):
    lines = (pack / "manifests/fsdd.jsonl").read_text().splitlines()[:3]
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests/fsdd.jsonl").write_text("\n".join(lines))
    for number, line in enumerate(lines):
        name = line.split('"audio": "')[1].split('"')[0]
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((pack / name).read_bytes() if number else b"not audio")
    results = evaluate(Talker(), task("digits", groups="digits", judge=False), tmp_path)
    # The second of the two test recordings; the third line is of the training split.
    assert by(results, "digits correct", "recorded").count == 1
    assert by(results, "items that could not be used").value == 1


def test_where_a_sound_begins_and_ends():
    wave = np.zeros(16000, np.float32)
    wave[4000:8000] = 0.5
    assert sounding(wave, 16000) == pytest.approx((0.25, 0.5), abs=0.011)
    assert sounding(wave * 0, 16000) == (0.0, 0.0) and sounding(wave[:0], 16000) == (0.0, 0.0)


@pytest.mark.skipif(os.environ.get("VIVAVOCE_LONG") != "1", reason="every item of every group: make check-long")
def test_every_question_can_be_made(pack):
    plan = Plan(data=pack)
    for name in ("digits", "sums", "voices", "other", "conditions"):
        for item in GROUPS[name][0](plan):
            heard = sound(item.given, RATE)
            assert np.isfinite(heard.wave).all() and heard.end * RATE < len(heard.wave)
