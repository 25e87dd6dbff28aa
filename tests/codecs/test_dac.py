"""DAC in small: built from a recipe by its published name, trained, used; streaming although it looks ahead."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codec_parity import check_modes, check_wave, speech_like
from proves import proves
from streaming_contract import check_gradient, check_published, check_stack
from vivavoce.audio import Audio
from vivavoce.codecs import PUBLISHED_DAC, codec_of, load_codec, save_codec
from vivavoce.codecs.dac import DACConfig, build_dac
from vivavoce.errors import RecipeError
from vivavoce.systems import build, load
from vivavoce.tokenizers.fingerprint import fingerprint
from vivavoce.training.initialise import is_convolution, unit_variance
from vivavoce.training.reconstruction import MultiScaleMel

LONG = os.environ.get("VIVAVOCE_LONG") == "1"
SMALL = {"encoder_dim": 2, "decoder_dim": 32, "codebooks": 4, "codebook_size": 32, "quantizer": {"codebook_width": 4}}
RECIPE = {
    "system": "dac",
    "sample_rate": 16000,
    "tokenizers": {"voice": {"kind": "dac-16khz"}},
    "streams": {"voice": {"tokenizer": "voice"}},
    "smoke": {"tokenizers.voice": SMALL},
}
NARROW = {name: {**PUBLISHED_DAC[name], **SMALL} for name in ("dac-16khz", "dac-44khz")}
NARROW["one odd stride"] = {**SMALL, "encoder_rates": [3, 2], "decoder_rates": [3, 2], "latent_dim": 6}


def narrow(name):
    """Signals of unit variance in all its layers, a waveform of deviation 0.2: untrained, they would fade."""
    torch.manual_seed(0)
    codec = build_dac(NARROW[name]).eval()
    wave, made = speech_like(0.3, codec.sample_rate), []
    unit_variance(codec.encoder, lambda: made.append(codec.encode_latents(wave)))
    last = [part for part in codec.decoder.modules() if is_convolution(part)][-1]
    unit_variance(codec.decoder, lambda: codec.decode_latents(made[0]), last=last, scale=0.2)
    return codec


@pytest.fixture(scope="module")
def stacks():
    codecs = {name: narrow(name).double() for name in NARROW}
    return {f"{name} {side}": getattr(codec, side) for name, codec in codecs.items() for side in ("encoder", "decoder")}


SIDES = [f"{name} {side}" for name in NARROW for side in ("encoder", "decoder")]


def width(name):
    if name.endswith("encoder"):
        return 1
    config = DACConfig.of(NARROW[name.rsplit(" ", 1)[0]])
    return config.latent_dim or config.encoded


@proves("descript-audio-codec", "mechanism")
@pytest.mark.parametrize("name", SIDES)
@given(sizes=st.lists(st.integers(0, 4), min_size=3, max_size=3), seed=st.integers(0, 2**20))
@settings(max_examples=20 if LONG else 1)
@torch.no_grad()
def test_stacks_keep_the_streaming_contract(stacks, name, sizes, seed):
    check_stack(stacks[name], width(name), sizes, seed)


@pytest.mark.parametrize("name", ["one odd stride encoder", "one odd stride decoder", "dac-44khz decoder"])
def test_stacks_publish_the_truth(stacks, name):
    with torch.no_grad():
        check_published(stacks[name], width(name))


@pytest.mark.parametrize("name", ["one odd stride encoder", "one odd stride decoder"])
def test_gradient_flows_through_stacks(stacks, name):
    check_gradient(stacks[name], width(name), 6 * stacks[name].chunk + int(stacks[name].warmup))


@proves("descript-audio-codec", "mechanism")
@pytest.mark.parametrize("name", list(NARROW))
def test_whole_streamed_and_batched_codes(name):
    codec = narrow(name)
    wave = speech_like(1.2, codec.sample_rate)[..., : min(16007, 200 * codec.hop + 7)]
    check_modes(codec, wave, [codec.hop, 7, 3 * codec.hop, 5000])


def test_tiles_change_nothing():
    codec = narrow("dac-16khz").double()
    wave, lengths = speech_like(1.5, 16000, rows=2).double(), torch.tensor([24000, 10001])
    with torch.no_grad():
        codec.tile = 1e9
        latents = codec.encode_latents(wave, lengths)
        sound = codec.decode_latents(latents)
        codec.tile = 0.1
        torch.testing.assert_close(codec.encode_latents(wave, lengths), latents)
        torch.testing.assert_close(codec.decode_latents(latents), sound)


@proves("descript-audio-codec", "recipe")
def test_a_recipe_builds_trains_and_generates(tmp_path):
    torch.manual_seed(0)
    model = build(RECIPE, "smoke")
    codec = model.system.codec
    assert codec.config.encoder_rates == (2, 4, 5, 8) and codec.config.encoder_dim == 2 and codec.codebooks == 4
    assert codec.quantizer.dropout == 0.5 and codec.quantizer.books()[0].entries.shape == (32, 4)
    wave = speech_like(0.5, 16000, rows=2)
    mel = MultiScaleMel(16000, {"windows": [128, 512], "mels": [20, 40]})
    optimizer, losses = torch.optim.Adam(codec.parameters(), 1e-2), []
    codec.train()
    for _ in range(15):
        heard = codec(wave)
        distance = mel(heard.audio, wave)
        optimizer.zero_grad()
        (distance + heard.losses["quantizer"]).backward()
        optimizer.step()
        losses.append(float(distance.detach()))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5]), losses
    model.system.eval()
    audio = Audio(wave[0].numpy()[:, :7001], 16000)
    made = model.resynth(audio)
    assert made.audio.samples.shape == (1, 7001) and made.codes.shape == (4, 22)
    assert (made.tokens_per_second, made.bits_per_second) == (200, 1000)
    model.save(tmp_path)
    again = load(tmp_path).resynth(audio)
    assert (again.codes == made.codes).all() and (again.audio.samples == made.audio.samples).all()


@proves("descript-audio-codec", "mechanism")
@torch.no_grad()
def test_codes_are_directions_in_few_dimensions():
    """The lookup is by angle: neither the length of what is looked up nor that of an entry decides."""
    codec = narrow("dac-16khz")
    quantizer = codec.quantizer
    assert all(book.entries.shape == (32, 4) for book in quantizer.books())
    wave = speech_like(0.5, 16000)
    codec.codebooks = 1
    codes = codec.encode(wave)
    assert len(codes.unique()) > 5
    (book, *_) = quantizer.books()
    sound = codec.decode(codes)
    book.entries *= torch.empty(32, 1).uniform_(0.1, 10)
    for parameter in book.input_projection.parameters():
        parameter *= 7
    assert torch.equal(codec.encode(wave), codes)
    assert not torch.allclose(codec.decode(codes), sound, atol=1e-3)


@proves("descript-audio-codec", "mechanism")
@torch.no_grad()
def test_it_looks_ahead_as_far_as_it_says_and_no_further():
    codec = narrow("dac-16khz").double()
    wave = speech_like(1.0, 16000).double()
    heard = codec.encode_latents(wave)
    frame, reach = 20, int(codec.encoder.lookahead)
    assert reach == 2493
    for at, changes in ((21 * 320 + reach, False), (21 * 320 + reach - 20, True)):
        other = wave.clone()
        other[..., at:] = 0.3 * torch.randn(1, 1, wave.shape[-1] - at, dtype=torch.float64)
        assert torch.equal(codec.encode_latents(other)[:, : frame + 1], heard[:, : frame + 1]) != changes
    state = codec.encoder_state(1)
    _, state = codec.encode_step(wave[..., : 21 * 320 + reach], state)
    assert int(state.emitted) == 21


@torch.no_grad()
def test_odd_strides_leave_the_reference_short_and_us_in_time():
    """Strides 8, 5, 4, 2: 8 samples fewer than frames x hop come of them; ours are followed by as many zeros."""
    codec = narrow("dac-16khz")
    codes = torch.randint(32, (2, 4, 6))
    sound = codec.decode(codes)
    assert sound.shape == (2, 1, 6 * 320) and not sound[..., -8:].any() and sound[..., -9].all()
    assert narrow("dac-44khz").decode(codes)[..., -1].all()
    assert codec.decode(codes, torch.tensor([1915, 640])).shape == (2, 1, 1915)
    state, pieces = codec.decoder_state(2), []
    for frame in codes.split(1, -1):
        piece, state = codec.decode_step(frame, state)
        pieces.append(piece[..., : int(state.emitted[0])])
    piece, _ = codec.decode_flush(state)
    check_wave(torch.cat([*pieces, piece], -1), sound)


def test_exact_lengths():
    codec = narrow("dac-16khz")
    for samples in (1, 319, 320, 321, 3200):
        assert codec.frames(samples) == -(-samples // 320) == codec.encode(torch.randn(1, 1, samples)).shape[-1]
    assert codec.frames(0) == 0 and torch.equal(codec.frames(torch.tensor([1, 321])), torch.tensor([1, 2]))


def test_saved_and_loaded(tmp_path):
    codec = narrow("dac-44khz")
    codec.codebooks = 3
    save_codec(codec, tmp_path)
    assert (tmp_path / "codec.yaml").read_text().startswith("kind: dac\n")
    again = load_codec(tmp_path)
    wave = torch.randn(1, 1, 4000)
    assert torch.equal(again.encode(wave), codec.encode(wave)) and again.codebooks == 3
    assert fingerprint(again) == fingerprint(codec) and again.config == codec.config
    with torch.no_grad():
        again.quantizer.books()[0].entries[0] += 1
    assert fingerprint(again) != fingerprint(codec)


def test_options_come_back():
    for options in PUBLISHED_DAC.values():
        config = DACConfig.of(options)
        assert DACConfig.of(config.options()) == config


@pytest.mark.parametrize("dtype, share", [(torch.float16, 1e-3), (torch.bfloat16, 0.05)])
def test_half_precision_keeps_the_quantizer(dtype, share):
    codec = narrow("dac-16khz")
    wave = speech_like(0.4, 16000)
    with torch.no_grad():
        expected = codec.encode_latents(wave)
        half = narrow("dac-16khz").to(dtype)
        found = half.encode_latents(wave)
    assert found.dtype == dtype and half.quantizer.books()[0].entries.dtype == torch.float32
    assert (found.float() - expected).square().mean() < share * expected.square().mean()
    codes = codec.encode(wave)
    said, sound = half.decode(codes), codec.decode(codes)
    assert said.dtype == torch.float32 and (said - sound).square().mean() < share * sound.square().mean()


def test_published_sizes():
    """76.6 million parameters at 44.1 kHz; frames and bits a second as published."""
    expected = {"dac-16khz": (50, 12, 6000), "dac-24khz": (75, 32, 24000), "dac-44khz": (86, 9, 7752)}
    for name, (frames, codebooks, bits) in expected.items():
        with torch.device("meta"):
            codec = codec_of({"kind": name})
        assert (round(codec.frame_rate), codec.codebooks, round(codec.bits_per_second)) == (frames, codebooks, bits)
    assert round(sum(parameter.numel() for parameter in codec.parameters()) / 1e6, 1) == 76.6


@pytest.mark.parametrize("change, message", [
    ({"filters": 3}, "'filters' is unknown"),
    ({"encoder_rates": []}, "strides"),
    ({"encoder_rates": [1, 6]}, "from 2 up"),
    ({"decoder_rates": [8, 4]}, "do not undo"),
    ({"decoder_dim": 24, "encoder_rates": [2] * 4, "decoder_rates": [2] * 4}, "halved 4 times"),
    ({"quantizer": {"kind": "vqq"}}, "vqq"),
    ({"quantizer": {"codebook_widht": 4}}, "codebook_widht"),
    ({"encoder_rates": 4}, "codec: "),
])
def test_impossible_ones(change, message):
    with pytest.raises(RecipeError, match=message):
        build_dac({**SMALL, **change})
