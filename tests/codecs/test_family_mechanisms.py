"""What defines each codec of these families: known answers and properties, at small widths."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from codec_families import narrow
from codec_parity import speech_like
from proves import proves
from vivavoce.codecs import codec_of
from vivavoce.nn.convolution import Conv, ConvTranspose
from vivavoce.nn.focal import FocalModulation
from vivavoce.nn.gradient_reversal import reverse_gradient
from vivavoce.nn.mdct import MDCT, InverseMDCT
from vivavoce.nn.stft import phases
from vivavoce.quantizers import build_quantizer
from vivavoce.training.factor_task import FactorHeads, FactorTask
from vivavoce.training.feature_task import FeatureTask
from vivavoce.training.spectral_losses import SpectralTerms, phase_losses, unwrapped


def learned(codec, wave, steps, losses):
    """Adam on the whole codec for some steps; the losses of the first and the last."""
    optimizer, seen = torch.optim.Adam([p for p in codec.parameters() if p.requires_grad], 1e-2), []
    codec.train()
    for _ in range(steps):
        loss = losses(codec, wave)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    codec.eval()
    return seen[0], seen[-1]


# FocalCodec


@proves("focalcodec", "mechanism")
@torch.no_grad()
def test_focal_modulation_by_its_equations():
    """query * h(sum of gated contexts), contexts of growing windows and of the whole signal."""
    torch.manual_seed(0)
    layer = FocalModulation(6, window=7, levels=2, factor=2)
    x = torch.randn(1, 30, 6)
    query, context, gates = layer.input(x).split([6, 6, 3], dim=-1)
    total = 0
    for level, size in enumerate((7, 9)):
        conv = layer.context[level]
        assert conv.kernel == size and conv.groups == 6
        context = F.gelu(F.conv1d(context.mT, conv.weight, conv.bias, padding=size // 2, groups=6).mT)
        total = total + context * gates[..., level : level + 1]
    total = total + F.gelu(context.mean(1, keepdim=True)) * gates[..., 2:]
    torch.testing.assert_close(layer(x), layer.output(query * layer.modulator(total)))


@proves("focalcodec", "mechanism")
def test_codes_are_signs_on_a_sphere():
    """A code is the bits of the signs, its value a corner of length 1; entropies are those of all codes."""
    quantizer = build_quantizer({"kind": "binary", "width": 4, "bits": 4})
    x = torch.tensor([[[3.0, -1.0, 0.5, -0.1], [-1e-3, 2.0, 1.0, 1.0]]])
    codes = quantizer.encode(x)
    assert codes.tolist() == [[[0b1010, 0b0111]]]
    corners = quantizer.decode(codes)
    assert torch.equal(corners.sign(), x.sign()) and torch.allclose(corners.norm(dim=-1), torch.ones(1, 2))
    assert torch.equal(quantizer.encode(1000 * x), codes)
    # loss = 0.1 (mean entropy of softmax over all 16 corners - entropy of the mean)
    points = F.normalize(x[0], dim=-1)
    everything = quantizer.decode(torch.arange(16).view(1, 1, 16))[0]
    shares = (-100 * torch.cdist(points, everything).square()).softmax(-1)

    def entropy(p):
        return -(p * p.clamp(min=1e-5).log()).sum(-1)

    expected = 0.1 * (entropy(shares).mean() - entropy(shares.mean(0)))
    assert quantizer.train()(x).loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert expected < 0 and quantizer.eval()(x).loss == 0


@proves("focalcodec", "mechanism")
@pytest.mark.parametrize("rate", ["50hz", "25hz", "12.5hz"])
def test_published_sizes_of_focalcodec(rate):
    with torch.device("meta"):
        codec = codec_of({"kind": f"focalcodec-{rate}"})
    assert codec.frame_rate == float(rate[:-2]) and codec.codebook_sizes == (8192,)
    assert codec.bits_per_second == pytest.approx(13 * codec.frame_rate)
    ears = codec.encoder.parts[0].parts[0]
    assert ears.width == 1024 and len(ears.encoder.blocks) == 6 and not any(p.requires_grad for p in ears.parameters())
    modulations = [m for m in codec.encoder.parts[1].modules() if isinstance(m, FocalModulation)]
    assert [m.width for m in modulations] == [1024, 512, 256]
    assert [[c.kernel for c in m.context] for m in modulations] == [[7, 9]] * 3
    back = [m.width for m in codec.decoder.parts[0].modules() if isinstance(m, FocalModulation)]
    assert back == [256, 512, 1024] and codec.decoder.parts[1].config.fft_size == 1024


@proves("focalcodec", "mechanism")
@torch.no_grad()
def test_the_stream_looks_three_frames_ahead():
    """Codes need nothing of the future, and a frame of sound at most three more frames of codes: 80 ms."""
    codec = narrow("feature_codec")
    wave = speech_like(0.4, 16000)
    other = wave.clone()
    other[..., 3200:] = 0
    assert torch.equal(codec.encode(wave)[..., :10], codec.encode(other)[..., :10])
    codes = codec.encode(wave)
    changed = codes.clone()
    changed[..., 11:] = (codes[..., 11:] + 1) % 64
    sound, different = codec.decode(codes), codec.decode(changed)
    same = (sound == different)[0, 0].int().cumprod(0).sum()
    assert 0 <= same - 8 * 320 <= 1  # codes from 11 on are heard in frames 8 to 11, but for a window's first value, 0
    assert codec.encoder.lookahead == 0 and codec.decoder.lookahead <= 3


# Transformers


@proves("ts3-codec", "mechanism")
@torch.no_grad()
def test_ts3_is_a_causal_window_of_patches_and_no_convolution():
    codec = narrow("ts3-50hz")
    assert not any(isinstance(m, Conv | ConvTranspose | nn.Conv1d) for m in codec.modules())
    assert codec.codebooks == 1 and codec.encoder.lookahead == codec.decoder.lookahead == 0
    wave = speech_like(0.5, 16000)
    latents = codec.encode_latents(wave)
    for frame, reach in ((4, 2 * (4 - 1)),):
        other = wave.clone()
        other[..., frame * 320 : (frame + 1) * 320] += 0.3
        heard = (codec.encode_latents(other) - latents).abs().amax((0, 2)) > 0
        assert heard.nonzero()[:, 0].tolist() == list(range(frame, frame + reach + 1))
    codes, state = codec.encode(wave), codec.encoder_state(1)
    for number in range(25):
        now, state = codec.encode_step(wave[..., number * 320 : (number + 1) * 320], state)
        assert int(state.emitted) == 1 and torch.equal(now[..., 0], codes[..., number])  # at once
    with torch.device("meta"):
        sizes = codec_of({"kind": "ts3-50hz"}), codec_of({"kind": "ts3-40hz"})
    assert [(c.frame_rate, c.codebook_sizes) for c in sizes] == [(50, (65536,)), (40, (131072,))]
    assert [round(c.bits_per_second) for c in sizes] == [800, 680]


@proves("taae", "mechanism")
def test_taae_codes_can_be_taken_apart_after_training():
    """One grid of 17 steps is two residual grids of 5 or four of 3, each prefix a coarser grid."""
    whole, two, four = (
        build_quantizer({"kind": "residual_fsq", "width": 6, "dims": 6, "levels": levels})
        for levels in ([17], [5, 5], [3, 3, 3, 3])
    )
    assert [q.codebook_sizes for q in (two, four)] == [(15625,) * 2, (729,) * 4] and two.fine == four.fine == 17
    chance = torch.Generator().manual_seed(0)
    x = torch.randn(4, 200, 6, generator=chance)
    grid = whole.eval()(x).latents
    assert torch.equal(grid, (torch.tanh(x) * 8).round() / 8) and len(grid.unique()) == 17
    for quantizer in (two, four):
        quantizer.eval()
        assert torch.allclose(quantizer(x).latents, grid, atol=1e-6)
        steps = [quantizer(x, None, count + 1).latents for count in range(quantizer.codebooks)]
        errors = [float((step - torch.tanh(x)).abs().max()) for step in steps]
        halved = {2: 0.26, 4: 0.51}[quantizer.codebooks]  # a level of 5 points refines four times, one of 3 twice
        assert all(later <= halved * before for before, later in pairwise(errors))
        assert errors[-1] <= 1 / 16 + 1e-6


@proves("taae", "mechanism")
def test_taae_trains_with_noise_in_place_of_rounding():
    quantizer = build_quantizer({"kind": "residual_fsq", "width": 6, "dims": 6, "levels": [5, 5], "noise": 0.5}).train()
    x = torch.randn(400, 5, 6, requires_grad=True)
    y = quantizer(x, generator=torch.Generator().manual_seed(0)).latents
    rounded = (y.detach() * 8 - (y.detach() * 8).round()).abs().amax((1, 2)) < 1e-4
    assert 0.4 < rounded.float().mean() < 0.6
    assert ((y - torch.tanh(x)).abs() <= 1 / 16 + 1e-6).all()
    y.sum().backward()
    assert torch.allclose(x.grad, 1 - torch.tanh(x.detach()) ** 2, atol=1e-6)


@proves("taae", "mechanism")
@torch.no_grad()
def test_taae_sees_a_window_to_both_sides():
    codec = narrow("taae", layers=[1], strides=[1], window=4)
    wave = speech_like(0.4, 16000)
    latents, frame = codec.encode_latents(wave), 9
    wave[..., frame * 320 : (frame + 1) * 320] += 0.3
    heard = (codec.encode_latents(wave) - latents).abs().amax((0, 2)) > 1e-6
    assert heard.nonzero()[:, 0].tolist() == list(range(frame - 2, frame + 3))
    assert narrow("taae").frame_rate == 25 and not any(isinstance(m, nn.Conv1d | Conv) for m in codec.modules())


# Spectra


@proves("mdctcodec", "mechanism")
def test_mdct_is_exact_by_cancellation_of_aliases():
    """Coefficients are those of the textbook's sum, as many as samples, of the same energy; two frames cancel what
    each of them alone has folded."""
    torch.manual_seed(0)
    hop, x = 40, torch.randn(2, 1000, 1, dtype=torch.float64)
    forth, back = MDCT(hop), InverseMDCT(hop)
    y = forth(x)
    assert y.shape == (2, 25, hop)
    torch.testing.assert_close(back(y), x)
    torch.testing.assert_close(y.square().sum(), x.square().sum())
    n, k = torch.arange(2 * hop, dtype=torch.float64), torch.arange(hop, dtype=torch.float64)
    window = torch.sin(math.pi / (2 * hop) * (n + 0.5))
    table = torch.cos(math.pi / hop * (n[:, None] + 0.5 + hop / 2) * (k + 0.5))
    frames = x[:, hop // 2 : -hop // 2, 0].unfold(1, 2 * hop, hop)
    torch.testing.assert_close(y[:, 1:-1], math.sqrt(2 / hop) * (frames * window) @ table)
    alone = torch.zeros_like(y)
    alone[:, 10:12] = y[:, 10:12]
    part = back(alone)
    torch.testing.assert_close(part[:, 420:460], x[:, 420:460])  # where both frames are
    assert (part[:, 390:410] - x[:, 390:410]).abs().max() > 0.1  # where one is
    odd = x[:, :997]
    torch.testing.assert_close(back(forth(odd))[:, :997], odd)


@proves("mdctcodec", "mechanism")
def test_mdctcodec_predicts_the_mdct():
    codec = narrow("mdctcodec")
    wave = speech_like(0.2, 8000)
    latents = codec.encode_latents(wave)
    spectra = codec.spectra(latents)
    sound = codec.synthesize(spectra)
    assert spectra.shape[1:] == (latents.shape[1] * 8, 40) and torch.equal(sound, codec.decode_latents(latents))
    torch.testing.assert_close(codec.analyze(sound), spectra, atol=1e-4, rtol=0)  # every array is some signal's MDCT
    terms = SpectralTerms({"mdct": 1}, hop=40)
    assert terms(sound, sound)["mdct"] == 0 and terms(sound, wave)["mdct"] > 0

    def distance(codec, wave):
        heard = codec(wave)
        return terms(heard.audio, wave)["mdct"] * 100 + heard.losses["quantizer"]

    first, last = learned(narrow("mdctcodec"), wave, 10, distance)
    assert last < 0.8 * first
    with torch.device("meta"):
        published = codec_of({"kind": "mdctcodec"})
    assert (published.frame_rate, published.bits_per_second) == (150, 6000)


@proves("apcodec", "mechanism")
def test_phase_losses_do_not_mind_whole_turns():
    torch.manual_seed(0)
    target = (torch.rand(2, 9, 12) - 0.5) * 2 * math.pi
    turns = 2 * math.pi * torch.randint(-3, 4, target.shape)
    assert all(loss < 1e-5 for loss in phase_losses(target + turns, target).values())
    assert unwrapped(torch.tensor([0.1, 2 * math.pi - 0.1, math.pi, -3.0])).tolist() == pytest.approx(
        [0.1, 0.1, math.pi, 3.0], abs=1e-6
    )
    # a common offset moves no difference; one that grows by frames moves the frequency, by bins the group delay
    offset = phase_losses(target + 0.5, target)
    frames = phase_losses(target + 0.3 * torch.arange(12), target)
    bins = phase_losses(target + 0.3 * torch.arange(9)[:, None], target)
    assert [round(float(v), 4) for v in offset.values()] == [0.5, 0, 0]
    assert round(float(frames["frequency"]), 4) == 0.3 and frames["group_delay"] < 1e-5
    assert round(float(bins["group_delay"]), 4) == 0.3 and bins["frequency"] < 1e-5


@proves("apcodec", "mechanism")
def test_amplitude_and_phase_go_side_by_side():
    """Each encoder branch hears one of both, each decoder branch gives one; spectra of no signal are inconsistent."""
    torch.manual_seed(0)
    codec = narrow("apcodec")
    wave = speech_like(0.1, 8000)
    heard = codec.analyze(wave)
    turned = codec.analyze(-wave)  # the same amplitudes, all phases turned by pi
    amplitude, phase = codec.encoder.parts[1].branches
    assert torch.equal(amplitude(heard), amplitude(turned))
    assert (phase(heard) - phase(turned)).abs().max() > 1e-3
    spectra = codec.spectra(codec.encode_latents(wave))
    bins = codec.config.bins
    assert spectra.shape[2] == 2 * bins == 322 and spectra[..., bins:].abs().max() <= math.pi + 1e-5
    first, second = codec.decoder.parts[0].parts[1].branches
    latents = torch.randn(1, 16, 8)
    assert first(latents)[..., bins:].abs().max() == 0 and second(latents)[..., :bins].abs().max() == 0
    assert codec.inconsistency(spectra, codec.synthesize(spectra)) > 10 * codec.inconsistency(
        codec.analyze(wave), codec.synthesize(codec.analyze(wave))[..., : wave.shape[-1]]
    )
    torch.testing.assert_close(codec.synthesize(heard)[..., : wave.shape[-1]], wave, atol=1e-4, rtol=0)


@proves("apcodec", "mechanism")
def test_apcodec_learns_by_its_losses():
    torch.manual_seed(0)
    codec, wave = narrow("apcodec"), speech_like(0.1, 8000)
    terms = SpectralTerms({"amplitude": 1, "phase": 1, "complex": 1})

    def distance(codec, wave):
        quantized = codec.quantize(codec.encode_latents(wave))
        spectra = codec.spectra(quantized.latents)
        made = codec.synthesize(spectra)
        losses = terms(made[..., : wave.shape[-1]], wave)
        assert all(loss.isfinite() for loss in losses.values())
        return sum(losses.values()) + codec.inconsistency(spectra, made) + quantized.loss

    first, last = learned(codec, wave, 10, distance)
    assert last < 0.9 * first
    silent = torch.zeros(1, 1, 800, requires_grad=True)  # phases of silence have no gradient, and so none that is NaN
    sum(terms(silent, wave[:1, :, :800]).values()).backward()
    assert silent.grad.isfinite().all()
    assert phases(torch.complex(torch.tensor([0.0, -1.0]), torch.tensor([0.0, 0.0]))).tolist() == pytest.approx(
        [0, math.pi]
    )
    with torch.device("meta"):
        published = codec_of({"kind": "apcodec"})
    assert (published.frame_rate, published.bits_per_second, published.config.bins) == (150, 6000, 161)


# Scalars


@proves("sq-codec", "mechanism")
@torch.no_grad()
def test_sq_codec_is_a_grid_of_19_steps():
    quantizer = build_quantizer({"kind": "scalar", "width": 32, "levels": 19})
    x = torch.randn(2, 50, 32, generator=torch.Generator().manual_seed(0))
    result = quantizer.eval()(x)
    torch.testing.assert_close(result.latents, (9 * torch.tanh(x)).round() / 9)
    assert torch.equal(result.codes, ((9 * torch.tanh(x)).round() + 9).long().mT) and result.loss == 0
    assert not list(quantizer.parameters()) and not list(quantizer.buffers())
    codec = codec_of({"kind": "codec", "filters": 2, "dim": 32, "causal": False,
                      "quantizer": {"kind": "scalar", "levels": 19}})  # fmt: skip
    assert (codec.frame_rate, codec.codebooks, codec.codebook_size) == (50, 32, 19)
    assert codec.bits_per_second == pytest.approx(6797, abs=1)


@proves("dmel", "mechanism")
@torch.no_grad()
def test_dmel_is_log_mel_in_sixteen_steps():
    """By torch.stft and the definition; every channel of every frame is a token, and nothing was learned for it."""
    codec = narrow("dmel")
    assert not list(codec.encoder.parameters()) and not list(codec.quantizer.parameters())
    wave = speech_like(0.5, 16000)
    window = torch.hann_window(800)
    spectrum = torch.stft(wave[0, 0], 1024, 400, 800, window, center=True, return_complex=True).abs()
    filters = codec.encoder.parts[0].filters
    mel = (spectrum.clamp(min=1e-5).T @ filters).clamp(min=1e-10).log10()
    torch.testing.assert_close(codec.encode_latents(wave)[0], mel, atol=2e-4, rtol=0)
    codes = codec.encode(wave)
    steps = -7 + 0.6 * torch.arange(16)
    nearest = (mel[..., None].clamp(-7, 2) - steps).abs().argmin(-1)
    assert codes.shape == (1, 80, 21) and (nearest == codes[0].T).float().mean() > 0.999
    torch.testing.assert_close(codec.quantizer.decode(codes)[0], steps[codes[0].T])
    assert codec.frame_rate == 40 and codec.bits_per_second == 12800


# Factors


@proves("facodec", "mechanism")
def test_facodec_factors_are_apart():
    """Residual codes are of what prosody and content leave; its gradient does not reach them; details drop out."""
    codec = narrow("facodec")
    quantizer = codec.quantizer
    latents = torch.randn(2, 6, 8, requires_grad=True)
    found = quantizer.eval().factors(latents)
    left = latents - found["prosody"].latents - found["content"].latents
    assert torch.equal(found["residual"].codes, quantizer.residual.encode(left))
    assert [part.codes.shape[1] for part in found.values()] == [1, 2, 3]
    found["residual"].latents.sum().backward()
    assert all(p.grad is None for side in (quantizer.prosody, quantizer.content) for p in side.parameters())
    whole = quantizer.joined(found).latents
    assert torch.equal(whole, sum(part.latents for part in found.values()))
    quantizer.train()
    many = quantizer.factors(torch.randn(200, 2, 8))
    rows = (quantizer.joined(many, torch.Generator().manual_seed(0)).latents
            - many["prosody"].latents - many["content"].latents).abs().amax((1, 2)) < 1e-6  # fmt: skip
    assert 0.35 < rows.float().mean() < 0.65
    with torch.device("meta"):
        published = codec_of({"kind": "facodec"})
    assert (published.frame_rate, published.codebook_sizes, published.bits_per_second) == (80, (1024,) * 6, 4800)
    assert published.encoder.width == 256 and published.hop == 200


@proves("facodec", "mechanism")
@torch.no_grad()
def test_facodec_timbre_is_one_for_all_frames_and_not_in_the_codes():
    codec = narrow("facodec")
    wave, other = speech_like(0.3, 8000), speech_like(0.2, 8000, seed=3)
    codes, timbre = codec.encode(wave), codec.timbre(wave)
    assert timbre.shape == (1, 8)
    lengths = torch.tensor([wave.shape[-1], 1200])
    both = codec.timbre(torch.cat([wave, wave]), lengths)
    torch.testing.assert_close(both, torch.cat([timbre, codec.timbre(wave[..., :1200])]), atol=1e-5, rtol=0)
    mine, theirs, nobody = (codec.decode(codes, timbre=t) for t in (timbre, codec.timbre(other), None))
    assert (mine - theirs).abs().max() > 1e-4 and (mine - nobody).abs().max() > 1e-4
    torch.testing.assert_close(mine, codec(wave).audio, atol=1e-5, rtol=0) if mine.shape == wave.shape else None
    norm = codec.decoder.parts[0]
    x = torch.randn(1, 5, 8)
    gain, shift = norm.style(timbre).chunk(2, dim=-1)
    y, _ = norm.step(x, codec.decoder_state(1, timbre)["0"])
    torch.testing.assert_close(y, F.layer_norm(x, (8,)) * gain + shift)
    state, pieces = codec.decoder_state(1, timbre), []
    for start in range(0, codes.shape[2], 4):
        piece, state = codec.decode_step(codes[..., start : start + 4], state)
        pieces.append(piece[..., : int(state.emitted)])
    pieces.append(codec.decode_flush(state)[0])
    torch.testing.assert_close(torch.cat(pieces, -1), mine, atol=1e-5, rtol=0)


@proves("facodec", "mechanism")
def test_facodec_heads_teach_and_unteach():
    """The heads of a factor pull it towards what it must know; reversed ones push it from what it must not."""
    x = torch.randn(3, requires_grad=True)
    (2 * reverse_gradient(x, 0.5)).sum().backward()
    assert torch.equal(x.grad, torch.full((3,), -1.0))
    torch.manual_seed(0)
    heads = FactorHeads(8, phones=5, speakers=2)
    hertz = torch.tensor([[110.0, 0.0, 220.0, 130.0]])
    phones, speakers = torch.tensor([[0, 3, -1, 4]]), torch.tensor([1])
    frames = {name: torch.randn(1, 4, 8, requires_grad=True) for name in ("prosody", "content", "residual")}
    timbre = torch.randn(1, 8, requires_grad=True)
    losses = heads(frames, timbre, hertz, phones, speakers)
    assert set(losses) == {"pitch", "voiced", "phones", "speaker", "reversed"}
    wanted = losses["pitch"] + losses["voiced"]
    grads = torch.autograd.grad(wanted, frames.values(), retain_graph=True, allow_unused=True)
    assert grads[0].abs().sum() > 0 and grads[1] is None and grads[2] is None
    grads = torch.autograd.grad(losses["phones"], frames.values(), retain_graph=True, allow_unused=True)
    assert grads[1].abs().sum() > 0 and grads[0] is None and grads[2] is None

    def pitch_of_detail(detail):  # what the head of the residual itself minimises
        return sum(heads._prosody("detail_prosody", detail, hertz)) + heads._labels("detail_content", detail, phones)

    upwards, = torch.autograd.grad(pitch_of_detail(frames["residual"]), frames["residual"], retain_graph=True)
    known = heads({**frames, "prosody": frames["prosody"].detach()}, timbre, hertz, phones, None)["reversed"]
    reversed_, = torch.autograd.grad(known, frames["residual"], retain_graph=True)
    torch.testing.assert_close(reversed_, -upwards)
    every = torch.autograd.grad(losses["reversed"] - known, frames.values(), allow_unused=True)  # the speaker's
    assert all(grad is not None and grad.abs().sum() > 0 for grad in every)


def test_a_factor_task_knows_pitch_and_speakers_of_its_crops():
    torch.manual_seed(0)
    time = torch.arange(16000) / 8000
    clips = [0.3 * torch.sin(2 * math.pi * pitch * time)[None] for pitch in (125.0, 250.0)]
    labels = [torch.arange(80), torch.arange(80) + 100]
    codec = narrow("facodec")
    task = FactorTask(codec, clips, speakers=["low", "high"], phones=200, phone_labels=labels, seconds=0.25, batch=6,
                      mel={"windows": [128], "mels": [8]}, heads={"phones": 0.5})  # fmt: skip
    batch = task.batch(3, 0, 1)
    halves = [task.batch(3, rank, 2) for rank in (0, 1)]
    assert all(torch.equal(batch[key], torch.cat([half[key] for half in halves])) for key in batch)
    for wave, speaker, row in zip(batch["wave"], batch["speakers"], batch["phones"]):
        clip = 1 - int(speaker)  # "high" is 0
        start = next(s for s in range(16000 - 2000 + 1) if torch.equal(clips[clip][:, s : s + 2000], wave))
        assert torch.equal(row, labels[clip][start // 200 :][:10]) or clips[clip][:, :1].numel() == 0
    codec.train()
    (name, losses), = task.updates(batch, 0)
    assert name == "codec" and losses["loss"].isfinite()
    losses["loss"].backward()
    heads = task.heads.heads
    assert all(heads[key].weight.grad.abs().sum() > 0 for key in heads)
    task.held_out, figures = [clips[0][:, :2000]], task.evaluate(0)
    codec.eval()
    assert not figures and {"mel", "snr_db", "used/5"} <= task.evaluate(0).keys()


# Features


def fresh(name, clips, **options):
    codec = narrow(name)
    return codec, FeatureTask(codec, clips, seconds=0.2, batch=3, **options)


@proves("repcodec", "mechanism")
@proves("maskgct-codecs", "mechanism")
@pytest.mark.parametrize("name", ["repcodec", "maskgct-semantic"])
def test_features_are_what_comes_back(name):
    """The loss is the distance of SSL features, with the quantizer's; the vocoder and the SSL encoder have no part."""
    clips = list(speech_like(1.0, 16000, rows=3))
    codec, task = fresh(name, clips, weight=5.0)
    batch = task.batch(0, 0, 1)
    codec.train()
    (_, losses), = task.updates(batch, 0)
    losses["loss"].backward()
    with torch.no_grad():
        features = codec.features(batch)
        assert features.shape == (3, 10, 16)
    parts = {name: any(p.grad is not None and p.grad.any() for p in module.parameters()) for name, module in {
        "ssl": codec.encoder.parts[0], "compressor": codec.encoder.parts[1], "decompressor": codec.decoder.parts[0],
        "vocoder": codec.decoder.parts[1]}.items()}  # fmt: skip
    assert parts == {"ssl": False, "compressor": True, "decompressor": True, "vocoder": False}

    def distance(codec, wave):
        (_, losses), = task.updates(wave, 0)
        return losses["loss"]

    first, last = learned(codec, batch, 12, distance)
    assert last < 0.8 * first
    task.held_out = clips[:1]
    with torch.no_grad():
        figures = task.evaluate(0)
        assert 0 < figures["unexplained"] < 10 and figures["used/0"] >= 1
    codes = codec.encode(batch)
    torch.testing.assert_close(codec.decode(codes), codec.vocode(codec.decompress(codec.quantizer.decode(codes))),
                               atol=1e-5, rtol=0)  # fmt: skip
    # statistics of the features, where they are asked for
    _, task = fresh(name, clips, standardize=3)
    features = task.codec.features(task.batch(0, 0, 1))
    assert features.mean((0, 1)).abs().max() < 1e-3 and (features.flatten(0, 1).std(0) - 1).abs().max() < 1e-2


@proves("maskgct-codecs", "mechanism")
def test_published_sizes_of_maskgct():
    with torch.device("meta"):
        semantic, acoustic = codec_of({"kind": "maskgct-semantic"}), codec_of({"kind": "maskgct-acoustic"})
        repcodec = codec_of({"kind": "repcodec"})
    assert (semantic.frame_rate, semantic.codebook_sizes, semantic.encoder.width) == (50, (8192,), 1024)
    assert len(semantic.encoder.parts[0].parts[0].encoder.body.blocks) == 17
    assert (acoustic.sample_rate, acoustic.frame_rate, acoustic.codebook_sizes) == (24000, 50, (1024,) * 12)
    vocos = acoustic.decoder.parts[0].config
    assert (vocos.layers, vocos.width, vocos.hidden, vocos.fft_size, vocos.hop) == (30, 512, 4096, 1920, 480)
    assert [part.stride for part in acoustic.encoder if getattr(part, "stride", 1) > 1] == [3, 4, 5, 8]
    assert (repcodec.frame_rate, repcodec.codebook_sizes, repcodec.encoder.width) == (50, (1024,), 768)


@proves("pq-vae", "mechanism")
def test_pq_vae_decodes_twice_and_multiplies_codebooks():
    """Groups of channels have codebooks of their own; the decompressor also learns from latents without codes."""
    clips = list(speech_like(0.5, 16000, rows=2))
    codec = narrow("repcodec")
    product = {"kind": "grouped_rvq", "codebooks": 4, "groups": 4, "codebook_size": 8}
    torch.manual_seed(0)
    codec = codec_of({"kind": "repcodec", **{k: v for k, v in codec.config.options().items() if k != "quantizer"},
                      "quantizer": product})  # fmt: skip
    latents = torch.randn(1, 9, 8)
    codes = codec.quantizer.eval().encode(latents)
    other = latents.clone()
    other[..., :2] = torch.randn(1, 9, 2)
    assert torch.equal(codec.quantizer.encode(other)[:, 1:], codes[:, 1:]) and codec.codebook_sizes == (8,) * 4
    task = FeatureTask(codec, clips, seconds=0.3, batch=2, dual=2.0)
    batch = task.batch(0, 0, 1)
    (_, losses), = task.updates(batch, 0)
    with torch.no_grad():
        features = codec.features(batch)
        straight = F.mse_loss(codec.decompress(codec.compress(features)), features)
        coded = F.mse_loss(codec.decompress(codec.quantize(codec.compress(features)).latents), features)
    torch.testing.assert_close(losses["dual"], straight)
    torch.testing.assert_close(losses["distance"], coded)
    torch.testing.assert_close(losses["loss"].detach(), coded + 2 * straight + losses["quantizer"])
