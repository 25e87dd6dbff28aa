"""Blocks of a long signal: joined, they are what the whole gives, for what streams, cuts chunks, or hears wholes."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from small_codecs import SMALL, small
from vivavoce.tokenizers.blocks import BlockDecoder, BlockEncoder, joined


class Whole:
    """A codec that hides its steps."""

    def __init__(self, codec):
        self.codec = codec

    def __getattr__(self, name):
        if name in ("encoder_state", "decoder_state"):
            raise AttributeError(name)
        return getattr(self.codec, name)


@pytest.mark.parametrize("name", [*SMALL, "wholes"])
@pytest.mark.parametrize("samples", [1, 799, 4001])
def test_blocks_are_the_whole(name, samples):
    codec = small("causal") if name == "wholes" else small(name)
    tokenizer = Whole(codec) if name == "wholes" else codec
    rng = np.random.default_rng(samples)
    sound = (0.3 * rng.standard_normal((codec.channels, samples)) * np.linspace(0, 1, samples)).astype(np.float32)
    wave, lengths = torch.from_numpy(sound)[None], torch.tensor([samples])
    scaled = {}
    codes = codec.encode(wave)
    if hasattr(codec, "encode_scaled"):
        codes, scales = codec.encode_scaled(wave)
        scaled = {"scales": scales}
    whole = codec.decode(codes, lengths, **scaled)[0].numpy()

    encoder = BlockEncoder(tokenizer)
    assert encoder.bounded == (name != "wholes")
    cuts = sorted({0, samples, *rng.integers(0, samples + 1, 4).tolist()})
    heard = [encoder.step(sound[:, a:b]) for a, b in pairwise(cuts)]
    pieces = [piece for piece in (*heard, encoder.flush()) if piece is not None]
    together = joined(pieces)
    assert together.frames == codec.frames(samples)
    assert together.codes.shape == codes.shape[1:]
    assert (together.codes != codes[0].numpy()).mean() < 0.002
    if samples > 4000:
        assert len(np.unique(together.codes)) > 10
    if scaled:
        assert np.allclose(together.scales, scales[0].numpy(), rtol=1e-6)

    for known in (samples, None):
        decoder = BlockDecoder(tokenizer, known)
        said = [decoder.step(piece) for piece in pieces]
        said = np.concatenate([*said, decoder.flush()], axis=1)
        assert said.shape[1] == samples if known else said.shape[1] >= samples or "scales" in scaled
        most = min(samples, said.shape[1]) if known else max(0, samples - 800)
        assert np.allclose(said[:, :most], whole[:, :most], atol=1e-4 * max(1.0, np.abs(whole).max()))
