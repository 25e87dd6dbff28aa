"""Units with a vocoder keep a codec's promises: lengths, streams, files, training."""

import pytest
import torch

from vivavoce.encoders.mfcc import MFCCEncoder
from vivavoce.encoders.registry import build_encoder
from vivavoce.encoders.units import UnitTokenizer
from vivavoce.errors import CheckpointError, RequestError
from vivavoce.tokenizers import load_tokenizer
from vivavoce.tokenizers.units import UnitCodec
from vivavoce.training.codec_task import CodecTask
from vivavoce.vocoders.registry import build_vocoder

GENERATOR = {
    "width": 16, "rates": [20, 8], "kernels": [40, 16], "residual_kernels": [3], "residual_dilations": [[1, 3]],
}
VOCODER = {"kind": "unit_hifigan", "units": 8, "unit_width": 8, "duration_hidden": 8, "generator": GENERATOR}


def waves(count=3, samples=4800):
    at = torch.arange(samples) / 16000
    return torch.stack([0.3 * torch.sin(6.28 * (300 + 500 * i + 4000 * at) * at) for i in range(count)])[:, None]


@pytest.fixture(scope="module")
def units():
    return UnitTokenizer.fit(MFCCEncoder(), list(waves()[:, 0]), 8, config={"kind": "mfcc"}, restarts=1)


@pytest.fixture
def codec(units):
    return UnitCodec(units, build_vocoder(VOCODER)).eval()


def test_lengths_are_exact(codec):
    wave, lengths = waves(), torch.tensor([4800, 3333, 400])
    codes = codec.encode(wave, lengths)
    assert codes.shape == (3, 1, codec.frames(4800)) and codec.hop == 160 and codec.bits_per_second == 300
    assert codec.decode(codes).shape == (3, 1, codes.shape[2] * 160)
    back = codec.decode(codes, lengths)
    assert back.shape == wave.shape
    for row, length in enumerate(lengths.tolist()):
        alone = codec.decode(codec.encode(wave[row : row + 1, :, :length]), lengths[row : row + 1])
        assert torch.allclose(back[row, :, :length], alone[0], atol=1e-5) and not back[row, :, length:].any()


def test_decoding_in_steps_is_the_whole(codec):
    codes = codec.encode(waves())
    whole = codec.decode(codes)
    state, parts = codec.decoder_state(3), []
    for part in codes.split(5, dim=2):
        wave, state = codec.decode_step(part, state)
        parts.append(wave[..., : int(state.emitted[0])])
    wave, state = codec.decode_flush(state)
    joined = torch.cat([*parts, wave[..., : int(state.emitted[0])]], dim=2)
    assert joined.shape == whole.shape and torch.allclose(joined, whole, atol=1e-5)


def test_a_causal_encoder_streams_its_units():
    config = {"kind": "log_mel"}
    units = UnitTokenizer.fit(build_encoder(config), list(waves()[:, 0]), 8, config=config, restarts=1)
    codec = UnitCodec(units)
    whole = codec.encode(waves())
    state, parts = codec.encoder_state(3), []
    for part in waves().split(777, dim=2):
        codes, state = codec.encode_step(part, state)
        parts.append(codes[..., : int(state.emitted[0])])
    codes, state = codec.encode_flush(state)
    assert torch.equal(torch.cat([*parts, codes[..., : int(state.emitted[0])]], dim=2), whole)
    assert len(whole.unique()) > 4


def test_what_cannot_be_done_is_said(codec, units):
    normed = build_encoder({"kind": "mfcc", "normalize": True})
    with pytest.raises(RequestError, match="whole signals"):
        UnitCodec(UnitTokenizer(normed, torch.zeros(8, 39))).encoder_state(1)
    with pytest.raises(RequestError, match="no vocoder"):
        UnitCodec(units).decode(torch.zeros(1, 1, 3, dtype=torch.int64))
    with pytest.raises(RequestError, match="units have one"):
        codec.codebooks = 2
    with pytest.raises(CheckpointError, match="cannot speak"):
        UnitCodec(units, build_vocoder({**VOCODER, "units": 9}))


def test_save_and_load(codec, tmp_path):
    codec.save(tmp_path / "u")
    again = load_tokenizer(tmp_path / "u")
    assert isinstance(again, UnitCodec)
    codes = codec.encode(waves())
    assert torch.equal(again.encode(waves()), codes)
    assert torch.allclose(again.decode(codes), codec.decode(codes), atol=1e-6)


def test_the_vocoder_learns_by_the_codecs_task(codec):
    """Reconstruction and durations improve; encoder and centers stay."""
    task = CodecTask(codec.train(), list(waves(2)), seconds=0.25, batch=2, mel="encodec")
    centers = codec.units.centers.clone()
    trained = [parameter for parameter in codec.parameters() if parameter.requires_grad]
    assert len(trained) == len(list(codec.vocoder.parameters()))
    optimizer = torch.optim.Adam(trained, 3e-3)
    history = []
    for _ in range(12):
        (name, losses), = task.updates(task.batch(0, 0, 1), 0)
        assert name == "codec"
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        history.append((float(losses["mel"]), float(losses["quantizer"])))
    assert all(parameter.grad is not None for parameter in trained)
    assert history[-1][0] < 0.97 * history[0][0] and history[-1][1] < history[0][1]
    assert torch.equal(codec.units.centers, centers)
