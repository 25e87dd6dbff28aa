"""EnCodec and Mimi in small: built from their published configuration, trained, decoded; and what defines each."""

from typing import Any

import pytest
import torch

from proves import proves
from vivavoce.codecs import Codec, build_codec, load_codec, save_codec
from vivavoce.codecs.published import PUBLISHED

# The published configuration with every width made tiny; structure, ratios and switches stay.
SMALL: dict[str, dict[str, Any]] = {
    "encodec-24khz": {"filters": 4, "dim": 16, "codebooks": 8, "codebook_size": 16, "use_codebooks": 8},
    "mimi": {
        **{"filters": 4, "dim": 16, "codebooks": 8, "codebook_size": 16, "use_codebooks": 8, "upsample_groups": 16},
        "transformer": {"layers": 1, "heads": 2, "feedforward": 32, "context": 250, "rope_interleaved": True},
    },
}


def small(name: str) -> Codec:
    torch.manual_seed(0)
    options = {**PUBLISHED[name], **SMALL[name]}
    options["quantizer"] = {**options["quantizer"], "start_iterations": 5}
    if name == "mimi":
        options["quantizer"]["codebook_width"] = 8
    else:
        options["quantizer"]["dropout_levels"] = [2, 4, 8]
    return build_codec(options)


def voices(rows: int, samples: int) -> torch.Tensor:
    """Harmonic tones that start and stop, [rows, 1, samples] at 24 kHz."""
    times = torch.arange(samples) / 24000
    pitch = 120 + 40 * torch.arange(rows)[:, None]
    wave = sum(torch.sin(2 * torch.pi * pitch * k * times) / k for k in range(1, 6))
    return (0.2 * wave * (torch.sin(2 * torch.pi * 3 * times + pitch) > -0.5))[:, None]


def trained(name: str, steps: int = 30) -> tuple[Codec, list[float]]:
    codec, wave, losses = small(name).train(), voices(4, 4800), []
    optimizer = torch.optim.Adam(codec.parameters(), 3e-3)
    for _ in range(steps):
        heard = codec(wave)
        loss = (heard.audio - wave).abs().mean() + sum(heard.losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float((heard.audio.detach() - wave).abs().mean()))
    return codec.eval(), losses


def builds_trains_and_generates(name: str, folder) -> None:
    codec, losses = trained(name)
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5]), losses
    wave = voices(2, 24000)
    codes = codec.encode(wave)
    assert codes.shape == (2, 8, codec.frames(24000)) and len(codes.unique()) > 4
    back = codec.decode(codes, lengths=torch.tensor([24000, 20000]))
    assert back.shape == (2, 1, 24000) and back[1, 0, 20000:].abs().max() == 0
    save_codec(codec, folder)
    again = load_codec(folder)
    assert torch.equal(again.encode(wave), codes) and torch.equal(again.decode(codes), codec.decode(codes))


@proves("encodec", "recipe")
def test_encodec_builds_trains_and_generates(tmp_path):
    builds_trains_and_generates("encodec-24khz", tmp_path)


@proves("mimi", "recipe")
def test_mimi_builds_trains_and_generates(tmp_path):
    builds_trains_and_generates("mimi", tmp_path)


@pytest.fixture(scope="module")
def encodec() -> Codec:
    return trained("encodec-24khz")[0]


@proves("encodec", "mechanism")
def test_encodec_is_one_model_for_many_bitrates(encodec):
    """Residual codes are nested: fewer are a prefix, and each prefix is useful, since training dropped quantizers."""
    wave = voices(3, 24000)
    codes = encodec.encode(wave)
    errors = []
    for count in (1, 2, 4, 8):
        encodec.codebooks = count
        assert torch.equal(encodec.encode(wave), codes[:, :count])
        latents = encodec.encode_latents(wave)
        errors.append((encodec.quantizer.decode(codes[:, :count]) - latents).square().mean().item())
    encodec.codebooks = 8
    assert errors[0] > errors[1] > errors[2] and errors[0] > errors[3], errors


@proves("encodec", "mechanism")
def test_encodec_streams():
    """Causal: what was encoded and decoded does not change with what comes later."""
    encodec = small("encodec-24khz").train()
    encodec(0.3 * torch.randn(4, 1, 24000))  # the codebooks begin at what they hear
    encodec.eval()
    wave = 0.3 * torch.randn(2, 1, 24000)
    other = wave.clone()
    other[..., 16000:] = 0.3 * torch.randn(2, 1, 8000)
    frames = 16000 // encodec.hop
    codes, changed = encodec.encode(wave), encodec.encode(other)
    assert torch.equal(codes[..., :frames], changed[..., :frames])
    assert not torch.equal(encodec.encode_latents(wave), encodec.encode_latents(other))
    changed[..., frames:] = (codes[..., frames:] + 1) % 16
    sound, other_sound = encodec.decode(codes), encodec.decode(changed)
    assert torch.equal(sound[..., : frames * encodec.hop], other_sound[..., : frames * encodec.hop])
    assert not torch.equal(sound, other_sound)


@proves("mimi", "mechanism")
def test_mimi_splits_semantic_from_acoustic():
    """The acoustic levels quantize the latents, not what the semantic codebook left: neither depends on the other."""
    codec = small("mimi").eval()
    wave = voices(2, 24000)
    codes = codec.encode(wave)
    semantic = codec.quantizer.semantic
    with torch.no_grad():
        for buffer in semantic.buffers():
            if buffer.is_floating_point() and buffer.dim() == 2:
                buffer.copy_(torch.randn_like(buffer))
    changed = codec.encode(wave)
    assert torch.equal(codes[:, 1:], changed[:, 1:]) and not torch.equal(codes[:, :1], changed[:, :1])
    both = codec.quantizer.decode(codes)
    alone = codec.quantizer.semantic.decode(codes[:, :1]) + codec.quantizer.acoustic.decode(codes[:, 1:])
    assert torch.equal(both, alone)


@proves("mimi", "mechanism")
def test_mimi_runs_at_12_5_frames_and_streams():
    codec = small("mimi").eval()
    assert codec.frame_rate == 12.5 and codec.hop == 1920 and codec.frames(24000) == 13
    wave = voices(1, 9600)
    whole, state, parts = codec.encode(wave), codec.encoder_state(1), []
    for start in range(0, 9600, 1920):
        codes, state = codec.encode_step(wave[..., start : start + 1920], state)
        assert int(state.emitted[0]) == 1  # a frame for every 80 ms, at once
        parts.append(codes[..., :1])
    assert torch.equal(torch.cat(parts, dim=2), whole)
