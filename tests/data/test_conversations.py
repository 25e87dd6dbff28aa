"""Simulated conversations: reproducible, and what they ask of a model is what the spoken-digit task says."""

import numpy as np
import pytest
import torch

from made_conversations import IDS, maker
from vivavoce.data.conversations import MEL_FRAMES, Timing, frame_deciding
from vivavoce.data.spectral import Backgrounds, PowerClip, power_spectrogram, reverberate, speech_span, stretch
from vivavoce.data.sums import all_answers, answer, is_number
from vivavoce.nn.logmel import StreamingLogMel

BINS = 129
NAMES = {i: word for word, i in IDS.items()}


@pytest.fixture(scope="module")
def front():
    return StreamingLogMel()


@pytest.fixture(scope="module")
def make(front):
    return maker(front, BINS)


def test_answers_are_the_110_of_the_task():
    texts = all_answers()
    assert len(texts) == len(set(texts)) == 110
    assert answer(["seven"]) == "seven" and answer(["nine", "nine"]) == "nine plus nine is eighteen"
    assert is_number("it is Seven o'clock") and not is_number("hello")
    with pytest.raises(ValueError):
        answer(["ten"])


def test_same_number_same_conversation_and_order_does_not_matter(make):
    conversations = make()
    first, other, again = conversations(5), conversations(6), conversations(5)
    for field in ("user", "heard", "text", "voice"):
        assert np.array_equal(getattr(first, field), getattr(again, field))
    assert not np.array_equal(first.user, other.user)


def test_every_question_is_answered_on_time_and_nothing_else(make):
    conversations = make(told=0, barge_in=0, episodes={"single": 0.4, "sum": 0.4, "other": 0.2})
    timing = Timing()
    answered = 0
    for number in range(40):
        example = conversations(number)
        questions: list[tuple[float, list[str]]] = []
        for kind, _, end, text in example.events:
            if kind == "word":
                questions.append((end, [*questions.pop()[1], text] if questions and questions[-1][0] < 0 else [text]))
        answers = [e for e in example.events if e[0] == "answer"]
        words = [e for e in example.events if e[0] == "word"]
        for _, start, _, text in answers:
            before = [w for w in words if w[2] <= start]
            digits = [w[3] for w in before if w[3] != "plus"]
            expected = text.split()
            mine = [d for d in (expected[:1] if len(expected) == 1 else [expected[0], expected[2]])]
            assert digits[-len(mine) :] == mine
            wait = start - before[-1][2]
            # the decision waits for a second digit or not; the sound follows `lead` frames and the playing frame later
            least = timing.single if len(mine) == 1 else timing.sum
            assert least <= wait - timing.lead * 0.08 + 1e-6 < least + 0.08 + 1e-6 + 0.08
            answered += 1
        spoken = [NAMES[i] for i in example.text if i]
        told = " ".join(a[3] for a in answers).split()
        assert spoken == told[: len(spoken)]
    assert answered > 40


def test_a_second_digit_never_comes_after_the_answer_has_been_decided(make):
    conversations = make(told=0, barge_in=0)
    for number in range(60):
        example = conversations(number)
        for kind, start, _, _ in example.events:
            if kind == "answer":
                decided = start - 0.16
                assert not any(k == "word" and decided < s < start for k, s, _, _ in example.events)


def test_the_model_yields_when_the_user_barges_in(make):
    conversations = make(told=0, barge_in=1.0, episodes={"single": 0.5, "sum": 0.5})
    yields = 0
    for number in range(30):
        example = conversations(number)
        for kind, start, stopped, _ in example.events:
            if kind == "yield":
                frame = round(stopped / 0.08) - 1
                assert 0 < stopped - start <= 0.14 + 0.08 + 1e-6
                if frame < len(example.text):
                    assert (example.voice[:, frame] == [1, 2]).all()
                    yields += 1
    assert yields > 10


def test_given_text_has_its_voice_whatever_the_user_says(make):
    example = make(told=1.0)(4)
    assert example.told
    first = int(np.flatnonzero(example.text)[0])
    assert (example.voice[:, first + 1] == 7).all()
    for frame in np.flatnonzero(example.decided):
        before = [NAMES[w] for w in example.text[:frame] if w]
        assert before[-1] == "is"  # only what the given words determine is the model's to choose
    assert example.decided.any() and make(told=0)(4).decided.all()
    assert make(told=1.0)(3).heard.max() == 0 and make(told=1.0)(3).text.max() > 0  # the user is silent in every other
    words = {e[3] for e in example.events if e[0] == "word"}
    assert words and not any(e[0] == "yield" for e in example.events)


def test_heard_words_follow_the_end_of_their_sound(make):
    example = make(told=0, barge_in=0)(2)
    marks = [(i, NAMES[w]) for i, w in enumerate(example.heard) if w]
    said = [(end, text) for kind, _, end, text in example.events if kind == "word"][: len(marks)]
    for (frame, word), (end, text) in zip(marks, said, strict=True):
        assert word == text
        assert 0.12 <= (frame + 1) * 0.08 - end + 1e-6 < 0.12 + 0.08 + 1e-6


def test_power_spectrogram_is_what_the_streaming_front_end_sees(front):
    wave = torch.randn(16000) * 0.1
    power = power_spectrogram(wave.numpy(), front, BINS)
    mel = torch.from_numpy(power) @ front.filters[:BINS]
    assert torch.allclose(mel.clamp(min=front.floor).log(), front(wave[None, :, None])[0], atol=1e-4)
    assert len(power) == 100 and MEL_FRAMES * 10 == 80


def test_augmentation_does_what_it_says():
    power = np.zeros((40, BINS), np.float32)
    power[10:30, 40] = 1
    assert speech_span(power) == (10, 30)
    wide = stretch(power, 1.5, 1.25)
    assert wide.shape == (60, BINS) and wide.sum(0).argmax() == 50
    wet = reverberate(power, 0.3, 0.5)
    assert wet[:10].sum() < 1e-4 and wet[31:].sum() > 0.5 and np.allclose(wet[10:30].sum(), 20, rtol=0.5)


def test_an_empty_conversation_has_no_words_and_is_not_silent(make):
    conversations = make(told=0, empty=1, music=0, knocks=0)
    for number in range(8):
        example = conversations(number)
        assert not example.heard.any() and not example.text.any() and example.decided.all()
        assert not [event for event in example.events if event[0] == "word"]
        assert example.user.max() > 0


def test_a_sum_said_as_one_sentence_is_heard_word_by_word(front):
    power = np.ones((100, BINS), np.float32)
    spans = (("three", 10, 40), ("plus", 40, 60), ("four", 60, 90))
    sentence = PowerClip(power, "three plus four", 10, 90, "ann", "made", spans)
    conversations = maker(front, BINS, sums=[sentence])(
        told=0, empty=0, barge_in=0, fluent=1, episodes={"sum": 1}, tempo=(1.5, 1.5)
    )
    example = conversations(3)
    said = [(text, round(end - start, 2)) for kind, start, end, text in example.events if kind == "word"][:3]
    assert said == [("three", 0.45), ("plus", 0.3), ("four", 0.45)]
    assert [NAMES[i] for i in example.heard if i][:3] == ["three", "plus", "four"]
    assert next(text for kind, *_, text in example.events if kind == "answer") == "three plus four is seven"


def test_told_sentences_teach_when_a_word_is_due_only_where_the_user_is_silent(front):
    conversations = maker(front, BINS)(told=1)
    lone, taught, moved = 0, 0, 0
    for number in range(20):
        example = conversations(number)
        alone = number % 2 == 1
        sentences = [(text, begin) for kind, begin, _, text in example.events if kind == "answer"][:-1]
        words = iter(np.flatnonzero(example.text))
        for text, begin in sentences:
            own = conversations._cells(conversations.answers[text], round(begin * 100) // MEL_FRAMES - 2)
            cells = [int(next(words)) for _ in text.split()]
            assert cells[0] == own[0] and (np.diff(cells) > 0).all() and np.abs(np.subtract(cells, own)).max() <= 1
            due = example.decided[cells]
            expected = len(cells) - 1 if alone else int(text.count(" ") == 4)
            assert not due[0] and due.sum() == expected if cells == own and alone else due.sum() in (0, expected)
            assert not (due.any() and cells != own)  # when a word is due is learned from the voice's own moments
            assert not (alone and cells != own)
            lone, taught, moved = lone + (len(cells) == 1), taught + due.any(), moved + (cells != own)
        assert bool(example.heard.any()) != alone
    assert lone > 5 and taught > 5 and moved > 5


def test_dictation_is_word_after_word_and_teaches_no_answer(front):
    other = PowerClip(np.ones((40, BINS), np.float32), "river", 10, 30, "bob", "made")
    conversations = maker(front, BINS, other=[other])(dictation=1, told=1)
    heard, others = 0, 0
    for number in range(6):
        example = conversations(number)
        assert not (example.decided.any() or example.text.any() or example.told)
        assert (example.voice == example.voice[:, :1]).all()
        words = [(round(end * 100), word) for kind, _, end, word in example.events if kind == "word"]
        ends = {frame_deciding(end, 0.12): word for end, word in words}
        marks = {i: NAMES[w] for i, w in enumerate(example.heard) if w}
        assert marks == {i: word for i, word in ends.items() if i < len(example.heard)}
        heard, others = heard + len(ends), others + sum(event[3] == "river" for event in example.events)
    usual = sum(int((conversation.heard > 0).sum()) for conversation in map(maker(front, BINS)(), range(6)))
    assert heard > 1.5 * usual and others > 3


def test_knocks_are_short_and_their_loudest_has_the_power_of_speech(front):
    backgrounds = Backgrounds(front, BINS, seconds=15)
    rng = np.random.default_rng(0)
    for _ in range(4):
        level = backgrounds.knocks(rng, 600).mean(1)
        assert level.max() == pytest.approx(1, rel=1e-3)
        assert np.median(level) < 0.2
