"""One table of the face's calls and bad input: each is refused by an error of ours that names the trouble, or works."""

import numpy as np
import pytest
import torch

import vivavoce
from vivavoce import Audio
from vivavoce.errors import AudioError, RequestError, VivavoceError


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    small = vivavoce.build("mini", size="smoke")
    with torch.no_grad():
        for weight in small.system.stage.parameters():
            weight.zero_()  # all logits equal: it chooses pads and falls silent
    return small


def sound(samples: int = 4000, rate: int = 16000, channels: int = 1, value: float | None = None) -> Audio:
    wave = 0.1 * np.sin(np.arange(samples) * 0.1)[None].repeat(channels, axis=0).astype(np.float32)
    if value is not None:
        wave[:, samples // 2] = value
    return Audio(wave, rate)


# name -> (the audio, whether it can be used)
AUDIO = {
    "no samples": (lambda: sound(0), False),
    "NaN": (lambda: sound(value=np.nan), False),
    "infinite": (lambda: sound(value=np.inf), False),
    "a path": (lambda: "q.wav", False),
    "an array": (lambda: np.zeros(4000, np.float32), False),
    "nothing": (lambda: None, False),
    "one sample": (lambda: sound(1), True),
    "silent": (lambda: Audio(np.zeros((1, 4000), np.float32), 16000), True),
    "far too loud": (lambda: sound(value=1e6), True),
    "8 channels": (lambda: sound(channels=8), True),
    "8 kHz": (lambda: sound(rate=8000), True),
    "44.1 kHz": (lambda: sound(rate=44100), True),
}
VERBS = {
    "reply": lambda model, audio: model.reply([("user", audio)], wait=0.2).audio,
    "duplex fill": lambda model, audio: model.fill("duplex", {"user": audio})["audio"],
    "features": lambda model, audio: model.features(audio).values,
    "resynth": lambda model, audio: model.resynth(audio).audio,
}


@pytest.mark.parametrize("kind", AUDIO)
@pytest.mark.parametrize("verb", VERBS)
def test_verbs(verb, kind, model):
    make, usable = AUDIO[kind]
    if not usable:
        with pytest.raises(VivavoceError) as refused:
            VERBS[verb](model, make())
        assert len(str(refused.value)) > 20
        return
    made = VERBS[verb](model, make())
    values = made.samples if isinstance(made, Audio) else made
    assert np.isfinite(values).all()


@pytest.mark.parametrize(
    "frame",
    [np.zeros(0), np.zeros(3), np.zeros(1280 * 2), np.full(1280, np.nan), np.zeros((2, 1280))],
    ids=["empty", "short", "long", "NaN", "two channels"],
)
def test_duplex_frames(frame, model):
    session = model.duplex()
    frame = np.resize(frame, session.frame_size) if frame.shape == (1280,) else frame
    with pytest.raises(AudioError):
        session.step(frame.astype(np.float32))
    again = session.step(np.zeros(session.frame_size, np.float32))  # the refused frame has done no harm
    assert len(again.audio) == session.frame_size


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.reply([]),
        lambda model: model.reply([("narrator", sound())]),
        lambda model: model.reply([("user", sound())], task="sing"),
        lambda model: model.fill("sing", {}),
        lambda model: model.fill("speak", {"text": "hello world"}),
        lambda model: model.features(sound(), layer=77),
        lambda model: model.duplex_rows(0),
        lambda model: model.duplex_rows(2).reset(5),
    ],
)
def test_requests(call, model):
    with pytest.raises(RequestError):
        call(model)


def test_codes(model):
    codec = model.system.codec
    codes = codec.encode(torch.zeros(1, 1, 8000))
    for wrong in (codes.float(), codes + 10**6, codes - 1 - codes.max(), codes.repeat(1, 9, 1), codes[0]):
        with pytest.raises(VivavoceError):
            codec.decode(wrong)
    with pytest.raises(VivavoceError):
        codec.encode(torch.zeros(1, 3, 8000))
    with pytest.raises(VivavoceError):
        codec.codebooks = 99
