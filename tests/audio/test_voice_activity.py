"""Voice activity as a stream: ragged rows in any chunks equal whole single rows; segments by hysteresis."""

import numpy as np
import pytest

from vivavoce.audio import Audio, read, stream
from vivavoce.audio.silero import FILE, initializers, silero
from vivavoce.audio.voice_activity import Hysteresis, VoiceActivity, speech_segments
from vivavoce.errors import AudioError


def test_ragged_rows_in_chunks_equal_single_whole_rows():
    rng = np.random.default_rng(0)
    rows = [np.cumsum(rng.standard_normal(n)).astype(np.float32) * 0.01 for n in (3000, 512, 0, 10000, 1)]
    vad = VoiceActivity()
    state, at, got = vad.initial_state(5), [0] * 5, [[] for _ in rows]
    while any(a < len(r) for a, r in zip(at, rows)):
        take = [min(int(rng.integers(0, 1500)), len(r) - a) for a, r in zip(at, rows)]
        chunk = np.full((5, max(take)), np.nan, np.float32)
        for b, n in enumerate(take):
            chunk[b, :n] = rows[b][at[b] : at[b] + n]
            at[b] += n
        before = state
        values, state = vad.step(chunk, state, np.array(take))
        for b, n in enumerate(take):
            got[b].extend(values[b, : state.emitted[b]])
            if n == 0:
                assert np.array_equal(before.hidden[b], state.hidden[b]) and before.held[b] == state.held[b]
    values, state = vad.flush(state)
    for b, row in enumerate(rows):
        got[b].extend(values[b, : state.emitted[b]])
        assert len(got[b]) == -(-len(row) // 512)
        if len(row):
            assert np.allclose(got[b], vad(row), atol=1e-5)


def test_hysteresis_by_hand():
    def segments(probabilities, **rules):
        machine, found = Hysteresis(**rules), []
        for p in probabilities:
            machine, segment = machine.step(p)
            found.append(segment)
        return [s for s in [*found, machine.finish(512 * len(probabilities))] if s]

    speech, maybe, silence = 0.9, 0.4, 0.1
    assert segments([silence] * 2 + [speech] * 10 + [silence] * 6) == [(1024, 6144)]
    assert segments([speech] * 5 + [silence] * 5) == []  # 0.16 s is too short
    assert segments([speech] * 5 + [silence] * 3 + [speech] * 5) == [(0, 6656)]  # a pause of 0.096 s bridges
    assert segments([maybe] * 20) == []
    assert segments([speech] * 9 + [maybe] * 20 + [speech]) == [(0, 30 * 512)]
    assert segments([speech] * 2 + [silence] * 5, speech=0.05) == [(0, 1024)]


def test_segments_of_recorded_speech_from_blocks(speech_files):
    path = speech_files[0]
    whole = speech_segments(read(path))
    assert speech_segments(stream(path, 0.1)) == whole
    assert len(whole) >= 2 and 0.5 < sum(b - a for a, b in whole) / read(path).duration < 0.9


def test_no_speech_and_no_samples():
    assert speech_segments(Audio(np.zeros(8000, np.float32), 8000)) == []
    with pytest.raises(AudioError, match="no samples"):
        speech_segments(iter([]))
    with pytest.raises(AudioError, match=r"use \.resample"):
        VoiceActivity()(Audio(np.zeros(8000, np.float32), 8000))


def test_audio_that_is_not_finite_has_no_segments_to_find():
    good, broken = np.zeros((1, 4000), np.float32), np.zeros((1, 4000), np.float32)
    broken[0, 5] = np.nan
    with pytest.raises(AudioError, match="sample 4005 of channel 0 is nan"):
        speech_segments([Audio(good, 16000), Audio(broken, 16000)])


def test_the_network_is_that_of_the_file():
    """onnxruntime is the reference: the same file, windows one after the other, each from the state of the last."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="the runtime that the file was made for is the reference")
    session = onnxruntime.InferenceSession(str(FILE), providers=["CPUExecutionProvider"])
    rng, rate = np.random.default_rng(0), np.array(16_000, np.int64)
    heard = np.cumsum(rng.normal(0, 0.02, (6, 5, 576)), axis=2).astype(np.float32)
    ours, theirs = np.zeros((5, 2, 128), np.float32), np.zeros((2, 5, 128), np.float32)
    for block in heard:
        said, ours = silero().decide(silero().encode(block), ours)
        expected, theirs = session.run(None, {"input": block, "state": theirs, "sr": rate})
        assert np.allclose(said, expected[:, 0], atol=2e-6) and np.allclose(ours, theirs.transpose(1, 0, 2), atol=2e-5)
    assert initializers(FILE)["model.encoder.0.reparam_conv.weight"].shape == (128, 129, 3)
