"""What defines SemantiCodec, and the patches that it hears: two tokens at a time, spoken by diffusion of latents."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from codec_families import narrow
from codec_parity import speech_like
from proves import proves
from vivavoce.audio.kaldi import kaldi_fbank
from vivavoce.codecs import codec_of
from vivavoce.codecs.mel_latents import divergence
from vivavoce.encoders.registry import build_encoder
from vivavoce.errors import RecipeError
from vivavoce.nn.noise import seeded
from vivavoce.training.latent_task import DiffusionTask, LatentTask

EARS = {"kind": "mel_patches", "width": 16, "layers": 3, "heads": 2, "hidden": 20, "mels": 32, "columns": 2,
        "average": 2}  # fmt: skip


@pytest.fixture(scope="module")
def codec():
    return narrow("semanticodec")


@pytest.fixture(scope="module")
def wave(codec):
    return speech_like(0.5, codec.sample_rate)


# What it hears


@proves("audio-mae", "mechanism")
@torch.no_grad()
def test_patches_are_squares_of_the_spectrum_with_fixed_places():
    torch.manual_seed(0)
    ears, wave = build_encoder(EARS), speech_like(0.31, 16000)[:, 0]  # two columns, the second one not whole
    frames, counts = ears.local(wave, torch.tensor([wave.shape[1]]))
    mel = kaldi_fbank(torch.nn.functional.pad(wave, (0, 2 * 2560 + 240 - wave.shape[1])), 16000, 32, taper="hanning",
                      scale=1.0)[0]  # fmt: skip
    mel = (mel + 4.2677393) / (2 * 4.5689974)
    assert counts.tolist() == [4] and mel.shape == (32, 32) and frames.shape == (1, 4, 256)
    for column, band in ((0, 0), (0, 1), (1, 0), (1, 1)):
        square = mel[16 * column : 16 * column + 16, 16 * band : 16 * band + 16]
        torch.testing.assert_close(frames[0, 2 * column + band], square.flatten())
    rates = 10000.0 ** -(torch.arange(4) / 4)
    for number, (column, band) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        by_hand = [each for at in (band, column) for each in ((at * rates).sin(), (at * rates).cos())]
        torch.testing.assert_close(ears.places[number], torch.cat(by_hand))


@proves("audio-mae", "mechanism")
@torch.no_grad()
def test_patches_are_heard_in_pieces_and_the_last_blocks_averaged():
    torch.manual_seed(0)
    ears, wave = build_encoder(EARS), speech_like(0.8, 16000)  # five columns, in pieces of two
    frames = ears.features(wave).values
    every = ears.features(wave, layer="all").values
    assert frames.shape == (1, 10, 16) and every.shape == (1, 4, 10, 16)
    torch.testing.assert_close(frames, ears.norm(every[:, 2:]).mean(1))
    other = wave.clone()
    other[..., : 2 * 2560] = 0.1  # the first piece
    assert torch.equal(ears.features(other).values[:, 4:], frames[:, 4:])
    assert (ears.features(other).values[:, :4] - frames[:, :4]).abs().amax(2).min() > 0.01
    rows = torch.cat([wave, other])
    lengths = torch.tensor([wave.shape[2], 3000])
    both = ears.features(rows, lengths).values
    torch.testing.assert_close(both[:1], frames)
    torch.testing.assert_close(both[1:, :4], ears.features(other[..., :3000]).values)
    first = ears.embed(ears.local(wave[:, 0], lengths[:1])[0])[:, :4]
    turned = ears.context(first.flip(1), torch.tensor([4])).flip(1)
    torch.testing.assert_close(ears.context(first, torch.tensor([4])), frames[:, :4])
    assert (turned - frames[:, :4]).abs().max() > 0.01  # places count


@proves("semanticodec", "mechanism")
@torch.no_grad()
def test_neighbouring_patches_lie_side_by_side():
    grouped = build_encoder({**EARS, "group": [2, 2]})
    wave, size = speech_like(0.9, 16000), 16
    plain = torch.nn.functional.pad(wave, (0, 6 * 2560 - wave.shape[2]))
    patches, groups = grouped.trunk.features(plain).values[0], grouped.features(wave).values[0]
    assert groups.shape == (3, 4 * size) and grouped.frame_rate == 16000 / 5120
    for number, group in enumerate(groups):
        torch.testing.assert_close(group, patches[4 * number : 4 * number + 4].flatten())
    bands = build_encoder({**EARS, "mels": 64, "group": [2, 1]})
    found, each = bands.features(wave).values[0], bands.trunk.features(wave).values[0]
    torch.testing.assert_close(found, each.unflatten(0, (-1, 2)).flatten(1))
    with pytest.raises(RecipeError, match="divide 2 bands"):
        build_encoder({**EARS, "group": [3, 1]})


# What it says


@proves("semanticodec", "mechanism")
@torch.no_grad()
def test_semantic_tokens_are_clusters_and_acoustic_ones_tell_what_they_miss(codec, wave):
    frames = codec.units.encoder.features(wave).values
    centers = codec.units.centers
    codes = codec.encode(wave)
    nearest = torch.cdist(frames[0], centers).argmin(1)
    assert torch.equal(codes[0, 0], nearest) and codes.shape == (1, 2, 8)
    latents = codec.encode_latents(wave)
    part = codec.encoder.parts[1]
    heard = torch.cat([frames, centers[nearest][None]], dim=-1)
    rest = part.linear(part.recurrent.lstm(heard)[0])
    torch.testing.assert_close(latents, torch.cat([frames, rest], dim=-1))
    entries = codec.quantizer.acoustic.levels[0].embedding
    assert torch.equal(codes[0, 1], torch.cdist(rest[0], entries).argmin(1))
    said = codec.quantizer.decode(codes)
    torch.testing.assert_close(said[0], torch.cat([centers[codes[0, 0]], entries[codes[0, 1]]], dim=-1))
    assert not any(p.requires_grad for p in codec.units.parameters())
    codec.codebooks = 1  # the semantic ones alone
    assert torch.equal(codec.encode(wave), codes[:, :1]) and codec.decode(codes[:, :1]).shape == (1, 1, 8 * 1280)
    codec.codebooks = 2


@proves("semanticodec", "mechanism")
def test_published_rates_of_semanticodec():
    rates = {"semanticodec": (50, 1350, 8), "semanticodec-50": (25, 675, 4), "semanticodec-25": (12.5, 337.5, 4)}
    for name, expected in rates.items():
        with torch.device("meta"):
            codec = codec_of({"kind": name})
        assert (codec.frame_rate, codec.bits_per_second, codec.column) == expected
        assert codec.codebook_sizes == (16384, 8192)
    trunk, flow = codec.units.encoder.trunk, codec.diffusion.config
    assert (trunk.width, trunk.layers, trunk.bands, trunk.columns * 0.16) == (768, 12, 8, 10.24)
    assert codec.units.encoder.width == 4 * 768 and codec.mels == 64 and codec.mel_hop == 160
    assert flow.mels == 8 * 16 and flow.guidance == 1 and flow.chunk * (1 + flow.left) * 0.32 == 10.24
    bits = [round(rate * (math.log2(size) + 13)) for rate in (50, 12.5) for size in (32768, 4096)]
    assert bits == [1400, 1250, 350, 312]  # its fastest and slowest


# How it sounds


@proves("semanticodec", "mechanism")
@torch.no_grad()
def test_both_tokens_lead_the_sound_and_a_seed_its_noise(codec, wave):
    codes = codec.encode(wave)
    sound = codec.decode(codes)
    assert torch.equal(codec.decode(codes), sound) and torch.equal(codec.decode(codes, seeds=[0]), sound)
    far = 1e-3 * sound.std()
    for level, size in enumerate(codec.codebook_sizes):
        other = codes.clone()
        other[:, level] = (other[:, level] + 1) % size
        assert (codec.decode(other) - sound).abs().max() > far
    two = codec.decode(codes.repeat(2, 1, 1), seeds=[7, 0])
    assert (two[:1] - sound).abs().max() > far
    torch.testing.assert_close(two[1:], sound)
    state = seeded(codec.decoder_state(1), torch.tensor([7]))
    first, state = codec.decode_step(codes, state)
    first = first[..., : int(state.emitted)]
    torch.testing.assert_close(torch.cat([first, codec.decode_flush(state)[0]], -1), two[:1])
    flow = codec.diffusion.parts[-1]
    told, nothing = torch.randn(2, 1, 3, 6)
    torch.testing.assert_close(flow.guided(torch.stack([told, nothing], 1)), nothing + 2 * (told - nothing))


@torch.no_grad()
def test_a_column_that_lacks_tokens_sounds_as_long_as_those_that_came(codec, wave):
    codes = codec.encode(wave)[..., :5]
    sound = codec.decode(codes)
    assert sound.shape[-1] == 5 * codec.hop
    state, pieces = codec.decoder_state(1), []
    for number in range(5):
        piece, state = codec.decode_step(codes[..., number : number + 1], state)
        pieces.append(piece[..., : int(state.emitted)])
    piece, state = codec.decode_flush(state)
    pieces.append(piece[..., : int(state.emitted)])
    torch.testing.assert_close(torch.cat(pieces, -1), sound)


# How it learns


@proves("semanticodec", "mechanism")
def test_mel_frames_become_latents_that_are_nearly_normal(wave):
    codec = narrow("semanticodec")
    task = LatentTask(codec, [wave[0]], seconds=0.32, batch=2, divergence=0.1)
    mean, spread = torch.randn(2, 1, 3, 4)
    expected = kl_divergence(Normal(mean, (spread / 2).exp()), Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(divergence(mean, spread), expected)
    optimizer = torch.optim.Adam([*codec.to_latents.parameters(), *codec.to_mel.parameters()], 1e-2)
    batch, seen = task.batch(0, 0, 1), []
    assert codec.features(batch).shape == (2, 32, 8) and codec.to_latents(codec.features(batch))[0].shape == (2, 8, 6)
    for step in range(15):
        (_, losses), = task.updates(batch, step)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        seen.append(float(losses["mel"]))
    assert seen[-1] < 0.8 * seen[0] and all(p.grad is not None for p in codec.to_latents.parameters())
    task.held_out = [wave[0]]
    with torch.no_grad():
        assert set(task.evaluate(0)) == {"mel", "divergence"}
    with pytest.raises(RecipeError, match="no latents"):
        LatentTask(narrow("dmel"), [wave[0]])


@proves("semanticodec", "mechanism")
def test_acoustic_tokens_learn_by_the_diffusion_of_latents(wave):
    """Its gradient goes through the codebook to the recurrent encoder; what hears, the latents and the voice stay."""
    codec = narrow("semanticodec")
    task = DiffusionTask(codec, [wave[0]], seconds=0.32, batch=2, measure=4, whole=0.0)
    waves = torch.cat([task.batch(number, 0, 1) for number in range(2)])
    assert codec.latents(waves).std().item() == pytest.approx(1, abs=1e-4)
    batch = task.batch(0, 0, 1)
    codec.train()
    centers = codec.units.centers.clone()
    (_, losses), = task.updates(batch, 0)
    codec.zero_grad()
    losses["loss"].backward()
    part = codec.encoder.parts[1]
    learns = {name: any(p.grad is not None and bool(p.grad.any()) for p in module.parameters()) for name, module in {
        "acoustic": part.recurrent, "ears": part.units, "flow": codec.diffusion, "latents": codec.to_latents,
        "mel": codec.to_mel, "vocoder": codec.decoder.parts[2]}.items()}  # fmt: skip
    assert learns == {"acoustic": True, "ears": False, "flow": True, "latents": False, "mel": False, "vocoder": False}
    assert torch.equal(codec.units.centers, centers)
    with torch.no_grad():
        quantized = codec.eval().quantize(codec.encode_latents(batch))
        torch.manual_seed(1)
        alone = codec.diffusion.loss(quantized.latents, codec.latents(batch))
        torch.manual_seed(1)
        (_, losses), = task.updates(batch, 0)
        torch.testing.assert_close(losses["flow"], alone)
        task.held_out = [wave[0]]
        assert {"flow", "used/0", "used/1"} <= set(task.evaluate(0)) and task.evaluate(0) == task.evaluate(1)
