"""A full-duplex system at smoke size: lockstep rows are independent, streaming is the whole, saved is loaded."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import vivavoce
from vivavoce.errors import AudioError, CheckpointError, RequestError
from vivavoce.schema import read_recipe
from vivavoce.systems import TokenLM, assemble
from vivavoce.systems.speech_lm import LISTENS_FIRST, SPEAKS_ON
from vivavoce.systems.token_system import Cells

FRAME = 1280


def loud(model):
    """Sampling at temperature 1 from weights that matter: greedy tiny models say one token for ever."""
    return assemble(read_recipe(model, "smoke", {"stages.dialogue.decode.sampling": {"temperature": 1.0}}), seed=1)


@pytest.fixture(scope="module")
def model():
    return loud("mini")


def frames(count: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(0, 0.1, (count, FRAME))).astype(np.float32)


def run(session, signal):
    return [session.step(frame) for frame in signal]


def same(left, right) -> bool:
    return all(
        a.tokens == b.tokens and np.allclose(a.audio, b.audio, atol=1e-6) for a, b in zip(left, right, strict=True)
    )


def test_same_seed_same_conversation_another_seed_another(model):
    signal = frames(12)
    first, again, other = (run(model.duplex(seed), signal) for seed in (3, 3, 4))
    assert same(first, again)
    assert [o.tokens for o in first] != [o.tokens for o in other]
    assert all(o.audio.shape == (FRAME,) for o in first)
    assert len({tuple(o.tokens["voice"]) for o in first}) > 6


def test_rows_in_lockstep_are_conversations_of_their_own(model):
    """Ragged: row 1 is held now and then, row 2 is reset in the middle; each says what it says alone."""
    signals = [frames(14, seed) for seed in (10, 11, 12)]
    rows = model.duplex_rows(3)
    for row, seed in enumerate((5, 6, 7)):
        rows.reset(row, seed=seed)
    heard = [0, 0, 0]
    said: list[list] = [[], [], []]
    for tick in range(14):
        if tick == 6:
            rows.reset(2, seed=9)
            heard[2] = 0
            said[2] = []
        active = [True, tick % 3 != 1, True]
        batch = np.stack([signals[row][heard[row]] for row in range(3)])
        batch[~np.array(active)] = np.nan  # a row that is held is not looked at
        for row, out in enumerate(rows.step(batch, active)):
            assert (out is not None) == active[row]
            if out is not None:
                said[row].append(out)
                heard[row] += 1
    for row, seed in enumerate((5, 6, 9)):
        alone = run(model.duplex(seed), signals[row][: heard[row]])
        assert same(said[row], alone), f"row {row}"


def test_rows_that_are_released_and_come_again_change_nothing_for_others(model):
    signals = {row: frames(16, 20 + row) for row in range(8)}
    rows, begun, said, sizes = model.duplex_rows(8), {}, {}, []
    for row in range(8):
        rows.release(row)
    for tick in range(16):
        for row in {0: [1], 3: [0], 5: [6], 9: [3], 12: [7]}.get(tick, []):
            rows.reset(row, seed=row)
            begun[row], said[row] = tick, []
        for row in {8: [6], 10: [3, 0]}.get(tick, []):
            rows.release(row)
            del begun[row]
        here = np.zeros((8, FRAME), np.float32)
        for row, first in begun.items():
            here[row] = signals[row][tick - first]
        outputs = rows.step(here, [row in begun for row in range(8)])
        assert [row for row, out in enumerate(outputs) if out is not None] == sorted(begun)
        for row in begun:
            said[row].append(outputs[row])
        sizes.append(rows.state.batch)
    assert sizes == [2] * 5 + [8] * 3 + [4] * 4 + [8] * 4
    assert {row: len(outs) for row, outs in said.items()} == {1: 16, 0: 7, 6: 3, 3: 1, 7: 4}
    for row, outs in said.items():
        assert same(outs, run(model.duplex(row), signals[row][: len(outs)]))
    with pytest.raises(RequestError, match="row 5 has been released"):
        rows.step(np.zeros((8, FRAME), np.float32), [row == 5 for row in range(8)])


def test_a_held_row_keeps_its_state_to_the_bit(model):
    rows = model.duplex_rows(2)
    rows.step(frames(2), [True, True])
    before = rows.state.take([1])
    rows.step(frames(2, 1), [True, False])
    after = rows.state.take([1])

    def compare(one, other):
        for key, value in one.items():
            if isinstance(value, dict):
                compare(value, other[key])
            elif key != "emitted":
                assert torch.equal(value, other[key]), key

    compare(before, after)


def read_whole(model, signal, outputs):
    """A conversation as it was, read at once: teacher forcing."""
    system = model.system
    values = {name: torch.tensor([o.tokens[name] for o in outputs]).T[None] for name in system.filled}
    with torch.inference_mode():
        frames = {"user": system.encoder(torch.from_numpy(signal.reshape(1, -1, 1)))}
        lengths = dict.fromkeys(system.streams, torch.tensor([len(outputs)]))
        return system.stage.read(system.places(Cells(values, lengths)), values, frames)


def test_streaming_columns_are_those_of_the_whole():
    """Teacher forcing over the tokens that a conversation chose gives the logits that chose them."""
    unbiased = {"stages.dialogue.decode.sampling.text.logit_bias": {0: 0.0}}
    greedy = assemble(read_recipe("mini", "smoke", unbiased), seed=1)
    signal = frames(10)
    said = run(greedy.duplex(0), signal)
    read = read_whole(greedy, signal, said)
    for name in ("heard", "text", "voice"):
        with torch.inference_mode():
            found = greedy.system.stage.predict(name, read, read.loss[name][..., 0])
        assert torch.equal(torch.stack([level.argmax(-1) for level in found.logits], 1), found.targets)
        assert found.targets.tolist() == [out.tokens[name] for out in said]


def test_other_user_audio_changes_what_is_chosen(model):
    one, other = run(model.duplex(0), frames(10, 1)), run(model.duplex(0), frames(10, 2))
    assert [o.tokens for o in one[1:]] != [o.tokens for o in other[1:]]


SENTENCE = "three plus four is seven"


@pytest.fixture(scope="module")
def hesitant():
    """A model whose wish to say a word now is sometimes above one half and sometimes below."""
    model = loud("mini")
    with torch.no_grad():
        head = model.system.stage.linear["text"][0]
        head.weight[0] *= 8
        head.bias[0] += 6
    return model


def wishes(model, signal, outputs) -> torch.Tensor:
    """Probability [frames] of a word in the text stream, by teacher forcing."""
    read = read_whole(model, signal, outputs)
    with torch.inference_mode():
        found = model.system.stage.predict("text", read, read.loss["text"][..., 0])
    return 1 - found.logits[0].softmax(-1)[:, 0]


def test_the_model_chooses_when_forced_words_come(hesitant):
    """A word stands where its probability reaches the threshold, or at the latest frame: nowhere else."""
    signal, within = frames(40, 3), 4
    by_wish = by_bound = 0
    for threshold in (0.2, 0.35, 0.5, 0.65):
        session = hesitant.duplex(0)
        session.say(SENTENCE, threshold, within)
        outputs = []
        while session.saying:
            outputs.append(session.step(signal[len(outputs)]))
        said = [out.text for out in outputs]
        assert [word for word in said if word] == SENTENCE.split() and said[0] == "three"
        since = 0
        for frame, wish in enumerate(wishes(hesitant, signal[: len(said)], outputs).tolist()[1:], 1):
            since += 1
            assert bool(said[frame]) == (wish >= threshold or since == within), frame
            by_wish += bool(said[frame]) and since < within
            by_bound += bool(said[frame]) and since == within
            since = 0 if said[frame] else since
    assert by_wish and by_bound, "the model never, or always, wanted a word: this test could not fail"


def test_forced_words_leave_other_rows_alone(hesitant):
    """Rows with words, with ids frame by frame and with free text: each says what it says alone."""
    signals = [frames(18, seed) for seed in (20, 21, 22)]
    texts = (SENTENCE, [0, 3, 0, 0, 5], "")
    alone = []
    for signal, text in zip(signals, texts, strict=True):
        session = hesitant.duplex(4)
        session.say(text)
        alone.append(run(session, signal))
    rows = hesitant.duplex_rows(3)
    said: list[list] = [[], [], []]
    for row, text in enumerate(texts):
        rows.reset(row, seed=4)
        rows.say(row, text)
    for tick in range(36):
        active = [len(said[row]) < 18 and (tick + row) % 3 != 0 for row in range(3)]
        batch = np.stack([signals[row][min(len(said[row]), 17)] for row in range(3)])
        for row, out in enumerate(rows.step(batch, active)):
            said[row] += [] if out is None else [out]
    assert [len(outs) for outs in said] == [18] * 3
    assert all(same(one, other) for one, other in zip(said, alone, strict=True))
    assert [out.tokens["text"][0] for out in alone[1]][:5] == [0, 3, 0, 0, 5]


def test_fill_speaks_what_a_session_says(hesitant):
    filled = hesitant.fill("speak", {"text": SENTENCE}, seed=2)
    text = filled["text"][0]
    words = hesitant.system.script(SENTENCE)
    assert [i for i in text if i] == words and text[LISTENS_FIRST] == words[0]
    ends = int(np.flatnonzero(text)[-1])
    assert not text[:LISTENS_FIRST].any() and len(text) == ends + 1 + SPEAKS_ON
    session = hesitant.duplex(2)
    session.say([0] * LISTENS_FIRST)
    session.say(SENTENCE)
    outs = run(session, np.zeros((ends + 1, FRAME), np.float32))
    assert np.array_equal([out.tokens["voice"] for out in outs], filled["voice"].T[: ends + 1])
    timed = hesitant.fill("speak", {"text": text}, seed=2)
    assert np.array_equal(timed["voice"], filled["voice"]) and np.array_equal(timed["text"][0], text)
    assert hesitant.fill("speak", {"text": SENTENCE}, length=9)["text"].shape == (1, 9)


def test_log_probabilities_are_those_of_the_conversation(model, monkeypatch):
    """The sum over a conversation's tokens of what each was drawn from, step by step."""
    signal, system, drawn = frames(8, 5), model.system, {}
    make = system.generator

    def watched():
        def watch(name):
            def rule(logits, level, index):
                drawn.setdefault((name, level), []).append(logits[0].double().log_softmax(-1))
                return logits

            return rule

        return replace(make(), rules={name: watch(name) for name in system.filled})

    monkeypatch.setattr(system, "generator", watched)
    said = run(model.duplex(6), signal)
    monkeypatch.undo()
    ids = {name: np.array([out.tokens[name] for out in said]).T for name in system.filled}
    user = vivavoce.Audio(signal.reshape(1, -1), 16000)
    item = [("user", user, False), *((name, ids[name], True) for name in system.filled)]
    found = model.loglik(item)
    assert found.keys() == {"heard", "text", "voice[0]", "voice[1]", "voice[2]"}
    for (name, level), logprobs in drawn.items():
        total, count = found[f"{name}[{level}]" if name == "voice" else name]
        expected = sum(float(each[ids[name][level, frame]]) for frame, each in enumerate(logprobs))
        assert count == 8 and abs(total - expected) < 1e-3
    short = [("user", user, False), ("voice", ids["voice"][:, :3], False), ("voice", ids["voice"][:, 3:5], True)]
    both = model.loglik([item, short])
    assert both[1].keys() == {"voice[0]", "voice[1]", "voice[2]"} and both[1]["voice[0]"][1] == 2
    for row, alone in zip(both, (found, model.loglik(short)), strict=True):
        assert all(abs(row[key][0] - alone[key][0]) < 1e-4 * row[key][1] for key in row)
    heard = model.loglik([("audio", user, True)])  # a waveform: the codes of what it says
    assert heard["voice[2]"][1] == 8 and np.isfinite(heard["voice[2]"][0])
    with pytest.raises(RequestError, match="'user' is never predicted"):
        model.loglik([("user", user, True)])


def test_frame_by_frame_is_the_whole_request(model):
    """`fill` by the clock, and column by column over the whole signal like any token model's."""
    audio = vivavoce.Audio(frames(7, 2).reshape(1, -1), 16000)
    clock, whole = model.fill("duplex", {"user": audio}, seed=3), TokenLM.fill(model, "duplex", {"user": audio}, seed=3)
    for name in ("heard", "text", "voice"):
        assert np.array_equal(clock[name], whole[name])
    assert np.allclose(clock["audio"].samples, whole["audio"].samples, atol=1e-5)


def test_a_prompt_is_what_was_before(model):
    signal = frames(9, 8)
    said = run(model.duplex(3), signal)
    prompt = {name: np.array([out.tokens[name] for out in said[:6]]).T for name in model.system.filled}
    prompt["user"] = vivavoce.Audio(signal[:6].reshape(1, -1), 16000)
    assert same(run(model.duplex(3, prompt), signal[6:]), said[6:])
    assert same(run(model.duplex(3, {"user": prompt["user"]}), signal[6:]), said[6:])  # it chooses what it chose
    other = {**prompt, "voice": 15 - prompt["voice"]}
    assert not same(run(model.duplex(3, other), signal[6:]), said[6:])
    rows, neighbour = model.duplex_rows(2), run(model.duplex(4), signal[:5])
    rows.reset(0, seed=4)
    rows.reset(1, seed=3, prompt=prompt)
    outs = []
    for tick in range(5):  # four frames of the prompt in the first step, two in the second
        outs.append(rows.step(np.stack([signal[tick], signal[4 + tick]])))
    assert same([out[0] for out in outs], neighbour)
    assert [out[1] is None for out in outs] == [True, True, False, False, False]
    assert same([out[1] for out in outs[2:]], said[6:])
    refused = [({"robot": [1]}, "there are user, heard, text, voice"), ({"text": "one"}, "frame by frame")]
    for wrong, expected in refused:
        with pytest.raises(RequestError, match=expected):
            rows.reset(0, prompt=wrong)


def test_words_that_it_does_not_know_are_refused(model):
    for text, expected in [("elephant", "'elephant' is not in the vocabulary"), ([0, 22], "id 22: the vocabulary has")]:
        with pytest.raises(RequestError, match=expected):
            model.duplex(0).say(text)


def test_saved_is_loaded_and_a_mismatch_is_refused(model, tmp_path):
    model.save(tmp_path / "model")
    loaded = vivavoce.load(tmp_path / "model")
    assert same(run(model.duplex(0), frames(6)), run(loaded.duplex(0), frames(6)))
    recipe = tmp_path / "model" / "recipe.yaml"
    text = recipe.read_text()
    recipe.write_text(text.replace("width: 32", "width: 64"))
    with pytest.raises(CheckpointError, match="saved with another recipe"):
        vivavoce.load(tmp_path / "model")
    recipe.write_text(text)
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="cut short"):
        vivavoce.load(tmp_path / "model")
    weights.unlink()
    with pytest.raises(CheckpointError, match="missing; train first"):
        vivavoce.load(tmp_path / "model")
    with pytest.raises(RequestError, match="no model"):
        vivavoce.load(tmp_path / "nothing")


def test_half_precision_on_disk_is_float32_in_memory(model, tmp_path):
    model.save(tmp_path / "half", torch.float16)
    model.save(tmp_path / "full")
    half, full = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "full"))
    assert half < 0.6 * full
    assert {p.dtype for p in vivavoce.load(tmp_path / "half").system.parameters()} == {torch.float32}


def test_reply_has_the_answer_from_the_end_of_the_turn(model, monkeypatch):
    audio = vivavoce.Audio(frames(5).reshape(1, -1)[:, :6000], 16000)
    reply = model.reply([("user", audio)], limit=1.0)
    assert reply.audio.sample_rate == 16000
    assert all(seconds > -0.4 for seconds, _ in reply.pieces)
    pieces = list(model.reply([("user", audio)], stream=True, limit=1.0))
    assert " ".join(p.text for p in pieces if p.text) == reply.text
    steps, step = [], model.system.step
    monkeypatch.setattr(model.system, "step", lambda *given, **named: steps.append(1) or step(*given, **named))
    stopped = model.reply([("user", audio)], stream=True)
    next(stopped)
    next(stopped)
    stopped.close()
    assert next(stopped, None) is None and len(steps) == 2  # none ahead of what was taken, none after
    monkeypatch.undo()
    other_rate = vivavoce.Audio(np.zeros((2, 22050), np.float32), 44100)
    assert len(model.reply([[("user", audio)], [("user", other_rate)]], limit=0.5)) == 2


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (np.zeros((1, 0), np.float32), "the user's turn: no samples"),
        (np.full((1, 800), np.nan, np.float32), "the user's turn: sample 0 of channel 0 is nan"),
    ],
)
def test_unusable_audio_is_refused_by_name(model, samples, expected):
    with pytest.raises(AudioError, match=expected):
        model.reply([("user", vivavoce.Audio(samples, 16000))])


def test_wrong_requests_say_what_is_there(model):
    audio = vivavoce.Audio(frames(1), 16000)
    for call, expected in [
        (lambda: model.reply([]), "no turns"),
        (lambda: model.reply([("robot", audio)]), "hears turns of 'user'"),
        (lambda: model.reply([("user", "q.wav")]), r"vivavoce\.read"),
        (lambda: model.reply([("user", audio)], task="sing"), "has answer, transcribe"),
        (lambda: model.fill("dance", {}), "no task 'dance'; there are duplex, speak, transcribe"),
        (lambda: model.fill("speak", {"txet": "one"}), "takes user, text, not 'txet'"),
        (lambda: vivavoce.load("nothing"), r"no model 'nothing': neither .* hub id .*embedded ones: mini"),
        (lambda: vivavoce.load(None), "named by a string or a path"),
        (lambda: model.duplex_rows(0), "at least one row"),
        (lambda: model.duplex_rows(2).reset(5), "rows 0 to 1"),
    ]:
        with pytest.raises(RequestError, match=expected):
            call()
    with pytest.raises(AudioError, match=r"expected \[2, 1280\]"):
        model.duplex_rows(2).step(np.zeros((2, 100), np.float32))
    bad = frames(2)
    bad[1, 3] = np.inf
    with pytest.raises(AudioError, match="row 1 holds NaN or infinite"):
        model.duplex_rows(2).step(bad)


def test_fill_and_features_and_resynth(model):
    audio = vivavoce.Audio(frames(4).reshape(1, -1)[:, :5000], 16000)
    filled = model.fill("duplex", {"user": audio})
    assert filled["voice"].shape == (3, 4) and filled["audio"].samples.shape == (1, 4 * FRAME)
    heard = model.fill("transcribe", {"user": audio})
    assert list(heard) == ["heard"] and np.array_equal(heard["heard"], filled["heard"])
    features = model.features(audio)
    assert features.values.shape == (3, 16) and features.frame_rate == 12.5
    again = model.resynth(audio)
    assert again.audio.samples.shape == (1, 5000) and again.tokens_per_second == 37.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_verb_in_another_precision(model, tmp_path, dtype):
    """The language model computes in `dtype`; what hears and speaks stays float32, and so is what comes out."""
    model.save(tmp_path)
    other = vivavoce.load(tmp_path, dtype=dtype)
    assert {p.dtype for p in other.system.stage.parameters()} == {dtype}
    assert next(other.system.codec.parameters()).dtype == next(other.system.encoder.parameters()).dtype == torch.float32
    audio = vivavoce.Audio(frames(6).reshape(1, -1), 16000)
    assert np.array_equal(other.features(audio).values, model.features(audio).values)
    assert other.reply([("user", audio)], limit=0.5).audio.samples.dtype == np.float32
    assert other.fill("duplex", {"user": audio})["voice"].shape == (3, 6)
    items = [("user", audio, False), ("text", [0, 1, 2, 0, 0, 0], True)]
    (found, count), (expected, _) = other.loglik(items)["text"], model.loglik(items)["text"]
    assert count == 6 and found == pytest.approx(expected, rel=0.02)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_every_verb_on_a_gpu(model, tmp_path):
    model.save(tmp_path)
    other = vivavoce.load(tmp_path, device="cuda")
    audio = vivavoce.Audio(frames(6).reshape(1, -1), 16000)
    np.testing.assert_allclose(other.features(audio).values, model.features(audio).values, atol=1e-3)
    assert other.reply([("user", audio)], limit=0.5).audio.samples.dtype == np.float32
    assert other.fill("speak", {"text": "seven"}, length=30)["voice"].shape == (3, 30)
    assert other.resynth(audio).codes.shape == (3, 6)
    items = [("user", audio, False), ("text", [0, 1, 2, 0, 0, 0], True)]
    assert other.loglik(items)["text"][0] == pytest.approx(model.loglik(items)["text"][0], rel=1e-3)
    rows = other.duplex_rows(2)
    rows.reset(1, 4, {"user": audio, "text": [0, 3]})
    assert [out is None for out in rows.step(frames(2))] == [False, True]
