"""What every codec promises, over the families of transformers, spectra, features and factors."""

import math

import numpy as np
import pytest
import torch

from codec_families import NARROW, hard_signals, narrow
from codec_parity import check_codes, check_modes, check_wave, speech_like
from vivavoce.codecs import codec_of
from vivavoce.codecs.registry import FAMILIES, config_of
from vivavoce.errors import RecipeError, RequestError
from vivavoce.quantizers.binary import BinaryQuantizer
from vivavoce.quantizers.grids import ResidualScalarQuantizer, ScalarQuantizer
from vivavoce.tokenizers.blocks import BlockDecoder, BlockEncoder, in_blocks, joined
from vivavoce.tokenizers.fingerprint import fingerprint


@pytest.fixture(scope="module")
def codecs():
    made = {}
    return lambda name: made.setdefault(name, narrow(name))


def test_the_zoo_has_every_family():
    published = {name: kind for kind, (_, _, sizes) in FAMILIES.items() for name in (kind, *sizes)}
    assert {published.get(name.split(",")[0]) for name in NARROW} - {None} == set(FAMILIES)


@pytest.mark.parametrize("name", NARROW)
@torch.no_grad()
def test_whole_streamed_and_batched_are_the_same(codecs, name):
    codec = codecs(name)
    wave = speech_like(max(0.25, 3.1 * codec.hop / codec.sample_rate), codec.sample_rate)
    assert len(codec.encode(wave)[:, 0].unique()) > 2
    check_modes(codec, wave, [codec.hop, 7, 3 * codec.hop, 1000])


@pytest.mark.parametrize("name", NARROW)
@torch.no_grad()
def test_long_signals_are_heard_in_pieces_of_bounded_length(codecs, name, monkeypatch):
    """The same codes and samples, whole, batched and streamed; what streams by itself has no pieces."""
    codec = codecs(name)
    sides = {side: rate for side, rate in ((codec.encoder, codec.sample_rate), (codec.decoder, codec.frame_rate))
             if side.lookahead == math.inf}  # fmt: skip
    heard, inner = {codec.encoder: [], codec.decoder: []}, codec._whole

    def listened(chain, x, *more):
        heard[chain].append(x.shape[1])
        return inner(chain, x, *more)

    monkeypatch.setattr(codec, "_whole", listened)
    monkeypatch.setattr(codec, "piece", 0.16)
    monkeypatch.setattr(codec, "around", 0.08)
    assert codec.pieces == ((0.16, 0.08) if codec.encoder in sides else None)
    if not sides:
        return
    wave = speech_like(0.7, codec.sample_rate)
    codes, lengths = codec.encode(wave), torch.tensor([wave.shape[2] - 999, wave.shape[2]])
    rows = codec.encode(wave.repeat(2, 1, 1), lengths)
    check_codes(codec, wave, rows[1:])
    check_codes(codec, wave[..., :-999], rows[:1, :, : codec.frames(int(lengths[0]))])
    encoder, decoder = BlockEncoder(codec), BlockDecoder(codec)
    heard_in_blocks = [encoder.step(block[0].numpy()) for block in wave.split([307, 5000, wave.shape[2] - 5307], 2)]
    coded = joined([piece for piece in (*heard_in_blocks, encoder.flush()) if piece is not None])
    check_codes(codec, wave, torch.from_numpy(coded.codes)[None])
    said = [decoder.step(block) for block in in_blocks(coded, 5)]
    check_wave(torch.from_numpy(np.concatenate([*said, decoder.flush()], axis=1))[None], codec.decode(codes))
    for side, rate in sides.items():
        cell = math.lcm(side.chunk, side.hop.numerator)
        most = 2 * round(0.08 * rate / cell) + round(0.16 * rate / cell)
        assert len(heard[side]) > 6 and max(heard[side]) <= max(3, most) * cell


@torch.no_grad()
def test_pieces_of_what_hears_a_bounded_context_are_the_whole(codecs, monkeypatch):
    """ESC's windows reach no further than the context of a piece: the same codes, but for ties."""
    codec = codecs("esc")
    wave = speech_like(4.1, codec.sample_rate)
    whole, sound = codec.encode(wave), codec.decode(codec.encode(wave))
    monkeypatch.setattr(codec, "piece", 1.0)
    monkeypatch.setattr(codec, "around", 0.5)
    check_codes(codec, wave, whole)
    check_wave(codec.decode(whole), sound)


@torch.no_grad()
def test_pieces_are_part_of_what_tells_codecs_apart(codecs, monkeypatch):
    codec, other = codecs("repcodec"), codecs("hilcodec")
    known, streams = fingerprint(codec), fingerprint(other)
    for each in (codec, other):
        monkeypatch.setattr(each, "around", 5.0)
    assert fingerprint(codec) != known and fingerprint(other) == streams


@pytest.mark.parametrize("name", NARROW)
@torch.no_grad()
def test_lengths_are_exact(codecs, name):
    codec = codecs(name)
    wave = speech_like(0.3, codec.sample_rate)
    for samples in (1, codec.hop - 1, codec.hop, codec.hop + 1):
        codes = codec.encode(wave[..., :samples])
        assert codes.shape == (1, codec.codebooks, codec.frames(samples))
        column = getattr(codec, "column", 1)  # frames that come together
        assert codec.frames(samples) == (
            samples // codec.hop + 1 if name in ("dmel", "xcodec2") else -(-samples // (column * codec.hop)) * column
        )
        sound = codec.decode(codes, lengths=torch.tensor([samples]))
        assert sound.shape == (1, 1, samples) and sound.dtype == torch.float32
    sizes = torch.arange(1, 100_001)
    assert bool((codec.frames(sizes) * codec.hop >= sizes).all())


@pytest.mark.parametrize("name", NARROW)
@torch.no_grad()
def test_hard_signals_and_any_codes_give_sound(codecs, name):
    codec = codecs(name)
    waves = hard_signals(codec.sample_rate)
    assert codec.encode_latents(waves).isfinite().all()
    assert codec.decode(codec.encode(waves)).isfinite().all()
    chance = torch.Generator().manual_seed(0)
    sizes = torch.tensor(codec.codebook_sizes)[None, :, None]
    codes = (torch.rand(20, codec.codebooks, 3, generator=chance) * sizes).long()
    assert codec.decode(codes).isfinite().all()


@pytest.mark.parametrize("name", ["focalcodec-50hz", "taae", "dmel", "facodec", "codec", "xcodec", "xcodec2",
                                  "language-codec", "simvq", "ticodec", "bicodec", "semanticodec"])
def test_malformed_codes_are_refused(codecs, name):
    codec = codecs(name)
    good = torch.zeros(1, codec.codebooks, 3, dtype=torch.int64)
    for bad, why in ((good.float(), "integers"), (good[0], "expected"), (good - 1, "another tokenizer"),
                     (good + codec.codebook_size, "another tokenizer"), (good.repeat(1, 2, 1), "codebooks")):
        with pytest.raises(RequestError, match=why):
            codec.decode(bad)
    with pytest.raises(RequestError, match="need"):
        codec.decode(good, lengths=torch.tensor([10 * codec.hop]))
    if isinstance(codec.quantizer, BinaryQuantizer | ScalarQuantizer | ResidualScalarQuantizer):
        with pytest.raises(RequestError, match="not finite"):
            codec.quantize(torch.full((1, 2, codec.quantizer.width), float("nan")))


@pytest.mark.parametrize("name", [name for name in NARROW if name not in ("codec", "speechtokenizer")])
def test_options_build_the_same_again(codecs, name):
    codec = codecs(name)
    again = codec_of(config_of(codec)).eval()
    again.load_state_dict(codec.state_dict())
    wave = speech_like(0.1, codec.sample_rate)
    assert torch.equal(again.encode(wave), codec.encode(wave))
    with pytest.raises(RecipeError, match="'widht' is unknown"):
        codec_of({"kind": name.split(",")[0], "widht": 3})
