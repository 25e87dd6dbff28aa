"""SoundStream in small: built from its published configuration, trained, decoded; and what defines it."""

import pytest
import torch

from proves import proves
from vivavoce.codecs import Codec, codec_of, load_codec, save_codec, seanet
from vivavoce.codecs.build import CodecConfig
from vivavoce.codecs.published import PUBLISHED

# Every width made tiny; structure, strides, dilations and switches stay.
SMALL = {"filters": 4, "dim": 16, "codebooks": 8, "codebook_size": 16, "use_codebooks": 8}


def voices(rows: int, samples: int) -> torch.Tensor:
    """Harmonic tones that start and stop, [rows, 1, samples] at 24 kHz."""
    times = torch.arange(samples) / 24000
    pitch = 120 + 40 * torch.arange(rows)[:, None]
    wave = sum(torch.sin(2 * torch.pi * pitch * k * times) / k for k in range(1, 6))
    return (0.2 * wave * (torch.sin(2 * torch.pi * 3 * times + pitch) > -0.5))[:, None]


def small() -> Codec:
    torch.manual_seed(0)
    return codec_of({"kind": "soundstream-24khz", **SMALL, "quantizer": {"start_iterations": 5}})


@pytest.fixture(scope="module")
def trained() -> tuple[Codec, list[float]]:
    codec, wave, losses = small().train(), voices(4, 4800), []
    optimizer = torch.optim.Adam(codec.parameters(), 1.5e-3)
    for _ in range(40):
        heard = codec(wave)
        loss = (heard.audio - wave).abs().mean() + sum(heard.losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float((heard.audio.detach() - wave).abs().mean()))
    return codec.eval(), losses


@proves("soundstream", "recipe")
def test_it_builds_trains_and_generates(trained, tmp_path):
    codec, losses = trained
    assert sum(losses[-5:]) < 0.92 * sum(losses[:5]), losses
    wave = voices(2, 24000)
    codes = codec.encode(wave)
    assert codes.shape == (2, 8, codec.frames(24000)) == (2, 8, 75) and len(codes.unique()) > 4
    back = codec.decode(codes, lengths=torch.tensor([24000, 20000]))
    assert back.shape == (2, 1, 24000) and back[1, 0, 20000:].abs().max() == 0
    save_codec(codec, tmp_path)
    again = load_codec(tmp_path)
    assert torch.equal(again.encode(wave), codes) and torch.equal(again.decode(codes), codec.decode(codes))


def test_published_sizes():
    """80 bits a frame at 6 kb/s, up to 18; dilations 1, 3, 9; all of the signal's past and none of its future."""
    config = CodecConfig.of(PUBLISHED["soundstream-24khz"])
    encoder, decoder = seanet.encoder(config), seanet.decoder(config)
    assert (encoder.hop, encoder.lookahead, decoder.lookahead, encoder.width) == (320, 0, 0, 256)
    first, unit = encoder.parts[0], encoder.parts[1:4]
    assert (first.kernel, first.width) == (7, 32)
    assert [part.inner.parts[1].dilation for part in unit] == [1, 3, 9]
    assert [(part.inner.parts[1].kernel, part.inner.parts[1].width) for part in unit] == [(7, 32)] * 3
    assert (encoder.parts[-1].kernel, decoder.parts[0].kernel, decoder.parts[-1].kernel) == (3, 7, 7)
    frames = config.sample_rate / 320
    assert frames * config.use_codebooks * 10 == 6000 and frames * config.codebooks * 10 == 18000


@proves("soundstream", "mechanism")
def test_one_model_for_many_bitrates(trained):
    """Residual codes are nested, and each prefix is useful, since training dropped quantizers."""
    codec, _ = trained
    wave = voices(3, 24000)
    codes, latents, errors = codec.encode(wave), codec.encode_latents(wave), []
    for count in (1, 2, 4, 8):
        codec.codebooks = count
        assert torch.equal(codec.encode(wave), codes[:, :count])
        errors.append((codec.quantizer.decode(codes[:, :count]) - latents).square().mean().item())
    codec.codebooks = 8
    assert errors[0] > errors[1] > errors[2] and errors[0] > errors[3], errors
    assert codec.quantizer.dropout == 1.0


@proves("soundstream", "mechanism")
def test_it_streams_frame_by_frame(trained):
    """A frame's codes come with its last sample, and its sound with its codes; whole is the same."""
    codec, _ = trained
    wave = voices(1, 6400)
    codes = codec.encode(wave)
    sound = codec.decode(codes)
    heard, spoken, said = codec.encoder_state(1), codec.decoder_state(1), []
    for number in range(20):
        some, heard = codec.encode_step(wave[..., 320 * number : 320 * number + 320], heard)
        assert int(heard.emitted) == 1 and torch.equal(some[..., 0], codes[..., number])
        piece, spoken = codec.decode_step(some[..., :1], spoken)
        assert int(spoken.emitted) == 320
        said.append(piece)
    torch.testing.assert_close(torch.cat(said, -1), sound, rtol=0, atol=1e-5)
