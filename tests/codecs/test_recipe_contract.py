"""What every codec promises, of the shipped recipes whose codecs are not in the table of families: whole, streamed and
batched are the same, lengths are exact, and anything gives sound."""

from functools import cache

import pytest
import torch

from codec_families import NARROW, hard_signals
from codec_parity import check_modes, columns, speech_like
from small_codecs import small
from vivavoce.codecs import Codec
from vivavoce.codecs.chunked import ChunkedCodec
from vivavoce.schema.reading import read_recipe, recipe_names
from vivavoce.systems import build
from vivavoce.training.initialise import unit_variance

FAMILIES = {name.split(",")[0] for name in NARROW} - {"codec", "feature_codec"}


def kind(name):
    """Of the recipe's codec; None of one without."""
    parts = read_recipe(name).tokenizers
    return parts["codec"].kind if "codec" in parts else None


NAMES = [
    *(name for name, path in recipe_names().items() if path.parent.name == "codecs" and kind(name) not in FAMILIES),
    "small spectral",
]


@cache
@torch.no_grad()
def codec_named(name):
    """The smoke size, its convolutions calibrated and its codebooks begun at what it hears; or one of SMALL."""
    torch.manual_seed(0)
    if name.startswith("small "):
        return small(name.removeprefix("small "))
    codec = build(name, "smoke").system.codec
    assert isinstance(codec, Codec)
    wave = speech_like(0.5, codec.sample_rate, rows=2).repeat(1, codec.channels, 1)
    unit_variance(codec.encoder, lambda: codec.encode_latents(wave))
    codec.train()(wave)
    return codec.eval()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_whole_streamed_and_batched_are_the_same(name):
    codec = codec_named(name)
    wave = speech_like(max(0.25, 7.5 * codec.hop / codec.sample_rate), codec.sample_rate).repeat(1, codec.channels, 1)
    if isinstance(codec, ChunkedCodec):  # whole chunks at a time: tests/parity/test_encodec_48khz.py
        pytest.skip("it does not stream")
    assert len(codec.encode(wave).unique()) > 3
    check_modes(codec, wave, [codec.hop, 7, 3 * codec.hop, 1000])


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_lengths_are_exact(name):
    codec = codec_named(name)
    wave = speech_like(2.1 * codec.hop / codec.sample_rate + 0.01, codec.sample_rate).repeat(1, codec.channels, 1)
    for samples in (1, codec.hop - 1, codec.hop, codec.hop + 1, 2 * codec.hop):
        codes = codec.encode(wave[..., :samples])
        assert codes.shape == (1, codec.codebooks, columns(codec, int(codec.frames(samples))))
        sound = codec.decode(codes, lengths=torch.tensor([samples]))
        assert sound.shape == (1, codec.channels, samples) and sound.dtype == torch.float32
    sizes = torch.arange(1, 100_001)
    if not isinstance(codec, ChunkedCodec):  # whose formula is in tests/parity/test_encodec_48khz.py
        assert torch.equal(codec.frames(sizes), -(-sizes // codec.hop))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_hard_signals_give_sound(name):
    codec = codec_named(name)
    waves = hard_signals(codec.sample_rate).repeat(1, codec.channels, 1)
    assert codec.decode(codec.encode(waves)).isfinite().all()
