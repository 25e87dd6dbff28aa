"""A recipe without stages is a codec: built, used, saved and loaded as every other system."""

import numpy as np
import pytest
import torch

import vivavoce
from vivavoce.audio import Audio
from vivavoce.errors import RecipeError, RequestError
from vivavoce.systems import MissingVerb, build, load_tokenizer


def test_resynth_gives_as_many_samples_after_a_round_trip(tmp_path):
    model = build("speech-codec", "smoke")
    assert model.verbs == {"resynth": "native"}
    model.save(tmp_path)
    again = vivavoce.load(tmp_path)
    noise = np.random.default_rng(0).normal(0, 0.1, (2, 8001)).astype(np.float32)
    for samples in (noise[:1, :1], noise[:1, :320], noise[:1], noise):
        one, other = (each.resynth(Audio(samples, 16000)) for each in (model, again))
        assert one.audio.samples.shape == (1, samples.shape[1]) and one.codes.shape == (3, -(-samples.shape[1] // 320))
        np.testing.assert_array_equal(one.codes, other.codes)
        np.testing.assert_array_equal(one.audio.samples, other.audio.samples)
    assert (one.tokens_per_second, one.bits_per_second) == (150, 600)
    half = Audio(noise[:1], 8000)  # resampled: twice as many samples come back, at the codec's rate
    assert len(model.resynth([half])[0].audio) == 16002
    assert load_tokenizer(tmp_path).codebooks == 3
    with pytest.raises(MissingVerb, match="has no verb 'reply'; it has resynth"):
        model.reply(None)


def test_it_has_one_tokenizer_of_audio():
    codec = {"kind": "spectral_codec", "stem": 8, "widths": [8]}
    with pytest.raises(RecipeError, match="one tokenizer of audio, not 2"):
        build("speech-codec", "smoke", **{"tokenizers.second": codec})
    with pytest.raises(RecipeError, match="one tokenizer of audio, not 0"):
        ids = {"kind": "integers", "size": 4, "rate": 50}
        build({"system": "x", "sample_rate": 8000, "tokenizers": {"a": ids}, "streams": {"a": {"tokenizer": "a"}}})


def test_a_codec_computes_in_float32(tmp_path):
    build("speech-codec", "smoke").save(tmp_path)
    assert vivavoce.load(tmp_path, dtype=torch.float32).verbs == {"resynth": "native"}
    with pytest.raises(RequestError, match="no language model: it computes in float32"):
        vivavoce.load(tmp_path, dtype=torch.bfloat16)


def test_a_published_codec_by_its_name():
    """`kind: mimi`, with what differs from the published sizes."""
    narrow = {"filters": 2, "dim": 16, "codebooks": 4, "codebook_size": 64, "upsample_groups": 16, "use_codebooks": 4}
    narrow |= {"quantizer": {"kind": "split_rvq", "codebook_width": 8}, "transformer": {"layers": 1, "feedforward": 8}}
    recipe = {"system": "x", "sample_rate": 24000, "tokenizers": {"voice": {"kind": "mimi", **narrow}}}
    model = build({**recipe, "streams": {"voice": {"tokenizer": "voice"}}})
    assert model.resynth(Audio(np.zeros((1, 4000), np.float32), 24000)).codes.shape == (4, 3)
    with pytest.raises(RecipeError, match=r"tokenizer\.kind: 'mimo' is none of codec, spectral_codec, .*encodec-24khz"):
        build({**recipe, "tokenizers": {"voice": {"kind": "mimo"}}, "streams": {"voice": {"tokenizer": "voice"}}})
