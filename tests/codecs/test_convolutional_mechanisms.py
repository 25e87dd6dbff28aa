"""What defines WavTokenizer, BigCodec, SpeechTokenizer, X-Codec, TiCodec, BiCodec, AudioDec and FunCodec, in small."""

import math

import pytest
import torch
import torch.nn.functional as F

from codec_families import NARROW, narrow
from codec_parity import speech_like, spread
from codecs_recipes import learned, task_of
from proves import proves
from vivavoce.codecs import codec_of
from vivavoce.errors import RecipeError, RequestError
from vivavoce.nn.antialiased import SnakeBeta, antialiased_snake
from vivavoce.quantizers.base import drawn_depths
from vivavoce.systems import build
from vivavoce.training.initialise import unit_variance
from vivavoce.training.supervision import Distillation, Supervision, along_features, along_frames, fewer, first_level

HUBERT = {"kind": "hubert", "conv_widths": [8] * 7, "width": 16, "layers": 2, "heads": 2, "hidden": 16,
          "position_kernel": 8, "position_groups": 2}  # fmt: skip


def fresh(name, wave, **options):
    """A codec in training, its encoder calibrated on what it hears: untrained signals would fade."""
    codec = codec_of({"kind": name, **NARROW[name], **options}).train()
    unit_variance(codec.encoder, lambda: codec.encode_latents(wave))
    return codec


# -- WavTokenizer --


@proves("wavtokenizer", "mechanism")
def test_wavtokenizer_is_one_large_codebook_that_begins_at_what_it_hears():
    """12 bits a frame at 40 or 75 frames, and a k-means start after which no entry is dead."""
    for name, rate, bits in (("wavtokenizer-40", 40, 480), ("wavtokenizer-75", 75, 900)):
        with torch.device("meta"):
            codec = codec_of({"kind": name})
        assert (codec.codebooks, codec.codebook_size, codec.frame_rate, codec.bits_per_second) == (1, 4096, rate, bits)
        assert codec.quantizer.books()[0].start_iterations == 200
    codec = narrow("wavtokenizer-75").train()
    wave = speech_like(1.0, 24000, rows=2)
    codec.quantize(codec.encode_latents(wave).detach())
    assert float(codec.eval().quantize(codec.encode_latents(wave)).usage) > 0.9


@proves("wavtokenizer", "mechanism")
@torch.no_grad()
def test_wavtokenizers_decoder_attends_to_all_frames_and_is_told_a_condition():
    """Its addition to Vocos: the last code changes the first sample, which the same Vocos without it does not have."""
    codec = narrow("wavtokenizer-75")
    codes = torch.arange(30)[None, None] % 32
    other = codes.clone()
    other[..., -1] = 31
    first = slice(0, 10 * codec.hop)
    sound = codec.decode(codes)
    assert not torch.equal(codec.decode(other)[..., first], sound[..., first])
    plain = narrow("wavtokenizer-75", vocoder={"width": 8, "hidden": 12, "layers": 2, "prenet": False})
    assert torch.equal(plain.decode(other)[..., first], plain.decode(codes)[..., first])
    told = codec.decoder.parts[2].function
    told.scale.weight[3] += 0.5 * torch.randn(8)
    assert torch.equal(codec.decode(codes), sound)
    codec.condition = 3
    assert not torch.allclose(codec.decode(codes), sound, atol=1e-4) and codec.condition == 3
    with pytest.raises(RequestError, match="one of 4"):
        codec.condition = 4


# -- BigCodec --


@proves("bigcodec", "mechanism")
@torch.no_grad()
def test_bigcodec_looks_one_large_codebook_up_in_eight_dimensions_by_angle():
    with torch.device("meta"):
        codec = codec_of({"kind": "bigcodec"})
    (book,) = codec.quantizer.books()
    assert book.entries.shape == (8192, 8) and (codec.frame_rate, codec.bits_per_second) == (80, 1040)
    assert round(sum(p.numel() for p in codec.parameters()) / 1e6) == 159
    codec = narrow("bigcodec")
    (book,) = codec.quantizer.books()
    wave = speech_like(0.5, 16000)
    codes = codec.encode(wave)
    book.entries *= torch.empty(32, 1).uniform_(0.1, 10)
    assert torch.equal(codec.encode(wave), codes) and len(codes.unique()) > 3


@proves("bigcodec", "mechanism")
@torch.no_grad()
def test_bigcodecs_activations_do_not_alias():
    """A tone at 0.35 of the rate, squared, would come back at 0.3: filtered at twice the rate it is 12 dB weaker
    there."""
    tone = torch.sin(2 * torch.pi * 0.35 * torch.arange(1000.0))[None, :, None]

    def folded(y):
        power = torch.fft.rfft(y[0, 100:900, 0] * torch.hann_window(800)).abs().square()
        return float(power[237:244].sum())

    assert folded(antialiased_snake(1)(tone)) < 0.0625 * folded(SnakeBeta(1)(tone))


@proves("bigcodec", "mechanism")
@torch.no_grad()
def test_bigcodecs_memory_runs_forward_only():
    """Its LSTMs hear all of the past and none of the future: the codec streams, as late as its convolutions look."""
    codec, convolutions = narrow("bigcodec").double(), narrow("bigcodec", lstm=0).double()
    wave = speech_like(1.0, 16000).double()
    frame, reach, past = 40, int(codec.encoder.lookahead), int(convolutions.encoder.receptive_field)
    before, behind = wave.clone(), wave.clone()
    at = frame * codec.hop - past - codec.hop
    before[..., at : at + codec.hop] += 0.1
    behind[..., (frame + 1) * codec.hop + reach :] *= -1
    for each, forgets in ((codec, False), (convolutions, True)):
        heard = each.encode_latents(wave)
        assert torch.equal(each.encode_latents(before)[:, frame], heard[:, frame]) == forgets
        assert torch.equal(each.encode_latents(behind)[:, : frame + 1], heard[:, : frame + 1])
    assert reach < 0.5 * 16000 and codec.encoder.receptive_field == math.inf


# -- SpeechTokenizer --


@proves("speechtokenizer", "mechanism")
def test_distillation_runs_along_features_with_the_right_sign():
    """-log sigmoid of the cosine of each feature's course over time, by hand; agreement is what lowers it."""
    said, target = torch.randn(2, 9, 4), torch.randn(2, 9, 4)
    by_hand = []
    for row in range(2):
        for feature in range(4):
            a, b = said[row, :, feature], target[row, :, feature]
            by_hand.append(-torch.log(torch.sigmoid((a @ b) / (a.norm() * b.norm()))))
    torch.testing.assert_close(along_features(said, target), torch.stack(by_hand).mean())
    assert along_features(target, target) < along_features(said, target) < along_features(-target, target)
    torch.testing.assert_close(along_features(target, target), torch.log(1 + torch.exp(torch.tensor(-1.0))))
    gains = torch.rand(4) + 0.5  # a feature's scale is not heard, along time; along features it is
    torch.testing.assert_close(along_features(target * gains, target), along_features(target, target))
    assert along_frames(target * gains, target) > 1e-3
    torch.testing.assert_close(along_frames(target, target), torch.tensor(0.0), atol=1e-6, rtol=0)


@proves("speechtokenizer", "mechanism")
def test_the_first_codebook_learns_what_the_teacher_hears():
    """Only the first level is taught: the loss falls, reaches the encoder, and does not depend on the others' entries;
    the teacher stays as it is."""
    torch.manual_seed(0)
    wave, losses = speech_like(0.6, 16000, rows=2), []
    codec = fresh("speechtokenizer", wave, codebooks=3)
    term = Supervision(codec, {"distillation": {"weight": 120, "teacher": HUBERT}})
    teacher = {name: value.clone() for name, value in term.terms["distillation"].teacher.state_dict().items()}
    optimizer = torch.optim.Adam([*codec.parameters(), *(p for p in term.parameters() if p.requires_grad)], 5e-3)
    for _ in range(20):
        latents = codec.encode_latents(wave)
        quantized = codec.quantize(latents)
        found = term(codec, wave, latents, quantized)
        optimizer.zero_grad()
        (term.total(found) + 10 * quantized.loss).backward()
        optimizer.step()
        losses.append(float(found["distillation"].detach()))
    assert sum(losses[-3:]) < 0.75 * sum(losses[:3]), losses
    assert codec.encoder.parts[0].weight.grad.abs().sum() > 0
    assert all(name.startswith("terms.distillation.project") for name in term.state_dict()), "it is in no checkpoint"
    kept = term.terms["distillation"].teacher.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in teacher.items())
    codec.eval()
    with torch.no_grad():
        latents = codec.encode_latents(wave)
        quantized = codec.quantize(latents)
        before = term(codec, wave, latents, quantized)["distillation"]
        torch.testing.assert_close(
            first_level(codec.quantizer, latents, quantized), codec.quantizer.decode(quantized.codes[:, :1])
        )
        for book in codec.quantizer.books()[1:]:
            book.embedding_sum.normal_()
        assert torch.equal(term(codec, wave, latents, codec.quantize(latents))["distillation"], before)


@proves("speechtokenizer", "mechanism")
@torch.no_grad()
def test_speechtokenizer_hears_both_ways():
    """Its encoder's LSTM runs back too: the end of a signal changes its first latents; the decoder's does not."""
    codec = narrow("speechtokenizer")
    wave = speech_like(1.0, 16000)
    other = wave.clone()
    other[..., -320:] += 0.1
    assert not torch.equal(codec.encode_latents(other)[:, 0], codec.encode_latents(wave)[:, 0])
    assert codec.encoder.lookahead == math.inf > codec.decoder.lookahead


@proves("mimi", "mechanism")
def test_mimis_semantic_codebook_is_taught_along_frames():
    """The semantic level of a split quantizer, by the cosine of each frame, at a rate below the teacher's; no gradient
    reaches the acoustic half."""
    torch.manual_seed(0)
    sizes = {"filters": 2, "ratios": [8, 5, 4, 4], "dim": 16, "codebooks": 3, "codebook_size": 16, "sample_rate": 16000}
    codec = codec_of({"kind": "codec", **sizes, "quantizer": {"kind": "split_rvq", "codebook_width": 8}}).train()
    term = Distillation(codec, HUBERT, axis="frames", layer=None)
    wave = speech_like(0.5, 16000)
    latents = codec.encode_latents(wave)
    assert term.targets(wave, latents.shape[1]).shape[1] == latents.shape[1] == 13
    term(codec, wave, latents, codec.quantize(latents)).backward()
    assert codec.quantizer.semantic.input_projection.weight.grad.abs().sum() > 0
    assert codec.quantizer.acoustic.input_projection.weight.grad is None


@proves("mimi", "mechanism")
@torch.no_grad()
def test_a_teacher_hears_its_own_rate():
    """WavLM hears 16 kHz, Mimi 24: the targets are those of the same sound at 16 kHz; who has more frames is
    averaged."""

    def tones(rate):
        time = torch.arange(rate) / rate
        return sum(torch.sin(2 * math.pi * (pitch + 50 * time) * time) for pitch in (150, 410, 900))[None, None] / 4

    sizes = {"filters": 2, "dim": 16, "codebooks": 2, "codebook_size": 16}
    slow = codec_of({"kind": "codec", **sizes, "ratios": [8, 6, 5, 4, 2], "sample_rate": 24000})
    torch.manual_seed(0)
    term = Distillation(slow, HUBERT, axis="frames", layer=None)
    wave = tones(24000)
    found = term.targets(wave, 13)
    term.resampling = None
    expected = term.targets(tones(16000), 13)
    assert slow.frame_rate == 12.5 and found.shape == expected.shape == (1, 13, 16)
    apart = (found - expected)[:, 1:-1].std() / (expected - expected.mean(1, keepdim=True))[:, 1:-1].std()
    unheard = (term.targets(wave[..., :16000], 13) - expected)[:, 1:-1].std()  # as if it were of 16 kHz
    assert apart < 0.1 and unheard > 3 * (found - expected)[:, 1:-1].std()
    frames = torch.arange(75.0)[None, :, None]
    torch.testing.assert_close(fewer(frames, 25), torch.arange(1.0, 75, 3)[None, :, None])
    assert torch.equal(fewer(frames, 74), frames[:, :74])


def test_supervision_that_cannot_be_is_named():
    codec = narrow("speechtokenizer")
    for terms, why in (({"distil": {}}, "'distil' is unknown"), ({"time_invariance": {}}, "no voice"),
                       ({"feature_reconstruction": {}}, "does not decode"), ({"distillation": {}}, "teacher"),
                       ({"distillation": {"teacher": HUBERT, "axis": "time"}}, "axis 'time'")):
        with pytest.raises(RecipeError, match=why):
            Supervision(codec, terms)


# -- X-Codec --


@proves("x-codec", "mechanism")
def test_xcodec_quantizes_semantic_features_with_the_acoustic_ones_and_must_tell_them():
    """Codes change with what the frozen encoder hears; the loss of the decoded features falls, and it stays frozen."""
    torch.manual_seed(0)
    codec = narrow("xcodec")
    wave = speech_like(0.6, 16000)
    branches = codec.encoder.parts[0]
    with torch.no_grad():
        latents = codec.encode_latents(wave)
        heard = branches.features
        branches.features = lambda x, sizes: torch.zeros_like(heard(x, sizes))
        assert not torch.allclose(codec.encode_latents(wave), latents, atol=1e-3)
        del branches.features
    codec.train()
    frozen = [parameter.clone() for parameter in branches.semantic.parameters()]
    term, losses = Supervision(codec, {"feature_reconstruction": {}}), []
    optimizer = torch.optim.Adam([p for p in codec.parameters() if p.requires_grad], 1e-2)
    for _ in range(15):
        latents = codec.encode_latents(wave)
        loss = term.total(term(codec, wave, latents, codec.quantize(latents)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0], losses
    assert all(torch.equal(a, b) for a, b in zip(frozen, branches.semantic.parameters()))
    assert not branches.semantic.training


# -- Codes that come once --


def lively(name):
    """Signals of unit variance behind all convolutions of its encoder: untrained ones would fade."""
    codec = narrow(name)
    wave = torch.cat([speech_like(0.6, codec.sample_rate, seed=seed) for seed in range(6)])
    unit_variance(codec.encoder, lambda: codec.encode_latents(wave))
    if name == "ticodec":  # entries where its voices are
        voices = codec.encode_latents(wave)[:, 0, codec.quantizer.frames.width :].detach()
        for number, part in enumerate(codec.quantizer.voice.parts()):
            part.books()[0].load(spread(voices[:, 3 * number : 3 * number + 3], 16, number))
    return codec


@pytest.mark.parametrize("name, count", [
    pytest.param("ticodec", 4, marks=proves("ticodec", "mechanism")),
    pytest.param("bicodec", 3, marks=proves("bicodec", "mechanism")),
])
@torch.no_grad()
def test_who_speaks_comes_once(name, count):
    """So many codes, however long the signal; the frames' codes do not change the voice, another's voice changes every
    frame of the sound, and whole, in steps, and in a batch it is the same voice."""
    codec = lively(name)
    rate = codec.sample_rate
    wave, other = speech_like(0.6, rate), 0.3 * speech_like(0.9, rate, seed=3)
    codes = codec.encode(wave)
    voices = [codec.encode_voice(each) for each in (wave, other)]
    assert [voice.shape for voice in voices] == [(1, count)] * 2 and len(codec.voice_sizes) == count
    assert (voices[0] != voices[1]).any()
    sound, swapped = (codec.decode(codes, voice=voice) for voice in voices)
    changed = (sound - swapped).abs().unflatten(2, (-1, codec.hop)).amax((0, 1, 3)) > 1e-6
    assert changed.all()
    lengths = torch.tensor([wave.shape[-1], other.shape[-1]])
    batch = torch.full((2, 1, int(lengths.max())), float("nan"))
    for row, signal in zip(batch, (wave, other)):
        row[0, : signal.shape[-1]] = signal[0, 0]
    assert torch.equal(codec.encode_voice(batch, lengths), torch.cat(voices))
    state, pieces = codec.decoder_state(2, torch.cat(voices)), []
    for frame in codes.repeat(2, 1, 1).split(2, dim=-1):
        piece, state = codec.decode_step(frame, state)
        pieces.append(piece[..., : int(state.emitted[0])])
    pieces.append(codec.decode_flush(state)[0])
    torch.testing.assert_close(torch.cat(pieces, -1), torch.cat([sound, swapped]), rtol=0, atol=1e-5)
    with pytest.raises(RequestError, match="expected, codes of"):
        codec.decode(codes, voice=voices[0][:, 1:])
    with pytest.raises(RequestError, match="another tokenizer"):
        codec.decode(codes, voice=voices[0] + max(codec.voice_sizes))


@proves("ticodec", "mechanism")
def test_ticodecs_voice_is_to_stay_the_same():
    """1 - cosine of the voices of two halves, the second not moved; training brings them together."""
    torch.manual_seed(0)
    wave = speech_like(0.8, 24000, rows=2)
    codec = fresh("ticodec", wave)
    encoder, half = codec.encoder.parts[0], wave.shape[-1] // 2
    sizes = torch.tensor([half, half])
    one, two = (encoder.both(x.transpose(1, 2), sizes)[1] for x in (wave[..., :half], wave[..., half:]))
    torch.testing.assert_close(codec.invariance(wave), (1 - F.cosine_similarity(one, two, dim=1)).mean())
    optimizer, losses = torch.optim.Adam(codec.parameters(), 3e-3), []
    for _ in range(20):
        loss = codec.invariance(wave)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0], losses
    with torch.device("meta"):
        codec = codec_of({"kind": "ticodec"})
    assert codec.voice_sizes == [1024] * 8 and codec.bits_per_second == 1500
    assert len(codec.quantizer.voice.parts()) == 8


@proves("bicodec", "mechanism")
@torch.no_grad()
def test_bicodecs_global_codes_are_a_scalar_grid_and_its_frames_semantic():
    with torch.device("meta"):
        codec = codec_of({"kind": "bicodec"})
    assert codec.voice_sizes == [4**6] * 32 and (codec.frame_rate, codec.bits_per_second) == (50, 650)
    codec = narrow("bicodec")
    wave = speech_like(0.6, 16000)
    encoder = codec.encoder.parts[0]
    heard, codes, voice = encoder.features, codec.encode(wave), codec.encode_voice(wave)
    assert not list(codec.quantizer.voice.books() if hasattr(codec.quantizer.voice, "books") else [])
    encoder.features = lambda x, sizes: heard(x, sizes).flip(1)
    assert (codec.encode(wave) != codes).any(), "the frames' codes are of the semantic features"
    assert torch.equal(codec.encode_voice(wave), voice), "the voice is of the spectrum"
    with_gradient = Supervision(codec, {"feature_reconstruction": {}})
    latents = codec.encode_latents(wave)
    assert with_gradient(codec, wave, latents, codec.quantize(latents))["feature_reconstruction"] > 0


# -- AudioDec, FunCodec --


@proves("audiodec", "mechanism")
def test_audiodec_learns_in_two_stages_of_which_the_second_keeps_the_codes(tmp_path, recorded):
    """The metric alone, then the decoder alone against discriminators: encoder and codebooks stay to the bit."""
    torch.manual_seed(0)
    model = build("audiodec", "smoke")
    metric, adversarial = model.recipe.training
    codec = model.system.codec
    first, second = (task_of(model, phase) for phase in (metric, adversarial))
    assert first.judges is None and second.judges is not None and second.keep_codes
    learned(first, 4)
    wave = speech_like(0.2, 48000)
    codes, sound = codec.encode(wave), codec.decode(codec.encode(wave))
    before = {name: value.clone() for name, value in codec.state_dict().items()}
    learned(second, 3, [r"codec\.decoder", "discriminators"])
    moved = {name.split(".")[0] for name, value in codec.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"decoder"} and torch.equal(codec.encode(wave), codes)
    assert not torch.equal(codec.decode(codes), sound)


@proves("audiodec", "mechanism")
def test_audiodec_streams_a_frame_of_6_milliseconds():
    codec = build("audiodec", "smoke").system.codec
    assert (codec.hop, codec.frame_rate, codec.encoder.lookahead, codec.decoder.lookahead) == (300, 160, 0, 0)
    wave = speech_like(0.05, 48000)[..., :1800]
    whole, heard = codec.encode(wave), codec.encoder_state(1)
    for number in range(6):
        codes, heard = codec.encode_step(wave[..., 300 * number : 300 * number + 300], heard)
        assert int(heard.emitted) == 1 and torch.equal(codes[..., 0], whole[..., number])


@proves("funcodec", "mechanism")
def test_funcodec_drops_codebooks_in_powers_of_two(recorded):
    """One model for many bitrates: training uses 1, 2, 4 … codebooks and no other number; fewer codes are a prefix that
    says less."""
    torch.manual_seed(0)
    model = build("funcodec", "smoke")
    codec, (phase,) = model.system.codec, model.recipe.training
    quantizer = codec.quantizer.train()
    depths = {int(n) for n in drawn_depths(300, quantizer.codebooks, quantizer.dropout_levels, quantizer.dropout, None)}
    assert depths == {1, 2, 4} and build("funcodec").system.codec.quantizer.dropout_levels == (1, 2, 4, 8, 16, 32)
    learned(task_of(model, phase), 10)
    wave, errors = speech_like(0.4, 16000, rows=2), []
    latents, codes = codec.encode_latents(wave), codec.encode(wave)
    for count in (1, 2, 4):
        codec.codebooks = count
        assert torch.equal(codec.encode(wave), codes[:, :count])
        errors.append(float((codec.quantizer.decode(codes[:, :count]) - latents).square().mean().detach()))
    assert errors[0] > errors[1] > errors[2], errors
