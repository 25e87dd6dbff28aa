"""What `load_tokenizer` takes, and what it says to what it does not take. Weights of other people: tests/parity."""

import pytest
import torch
from safetensors.torch import save_file

import vivavoce
from vivavoce.codecs import build_codec, save_codec
from vivavoce.errors import CheckpointError, RequestError
from vivavoce.tokenizers import load_tokenizer

SMALL = {"sample_rate": 16000, "filters": 2, "ratios": [4, 2], "dim": 8, "codebooks": 3, "codebook_size": 16}


@pytest.fixture
def directory(tmp_path):
    save_codec(build_codec(SMALL), tmp_path)
    return tmp_path


def test_our_directory(directory):
    tokenizer = vivavoce.load_tokenizer(str(directory), codebooks=2)
    assert (tokenizer.sample_rate, tokenizer.frame_rate, tokenizer.codebooks, tokenizer.hop) == (16000, 2000, 2, 8)
    codes = tokenizer.encode(torch.randn(2, 1, 81), torch.tensor([81, 10]))
    assert codes.shape == (2, 2, 11) and codes.dtype == torch.int64
    assert not tokenizer.training


def test_another_dtype_leaves_the_quantizer_in_float32(directory):
    tokenizer = load_tokenizer(directory, dtype=torch.float64)
    assert next(tokenizer.encoder.parameters()).dtype == torch.float64
    assert tokenizer.quantizer.levels[0].embedding.dtype == torch.float32
    codes = tokenizer.encode(torch.randn(1, 1, 80))
    assert tokenizer.decode(codes).dtype == torch.float64


NARROW = {
    "encodec": {**SMALL, "filters": 4, "true_skip": False, "lstm": 1, "pad_mode": "reflect"},
    "mimi": {
        "sample_rate": 16000, "filters": 4, "ratios": [4, 2], "dim": 16, "last_kernel": 3, "codebooks": 4,
        "codebook_size": 16, "quantizer": {"kind": "split_rvq", "codebook_width": 8}, "downsample": 2,
        "transformer": {"layers": 2, "heads": 2, "feedforward": 24, "context": 6}, "upsample_groups": 16,
        "whole_frames": True,
    },
}


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(name, dtype, tmp_path):
    """Unlike float64, it is not promoted to by what is float32: every part must keep it. Waveforms are float32."""
    torch.manual_seed(0)
    save_codec(build_codec(NARROW[name]), tmp_path)
    exact, half = load_tokenizer(tmp_path), load_tokenizer(tmp_path, dtype=dtype)
    wave, lengths = torch.randn(2, 1, 301), torch.tensor([301, 120])
    with torch.no_grad():
        latents, expected = half.encode_latents(wave), exact.encode_latents(wave)
    assert latents.dtype == dtype
    assert (latents.float() - expected).square().mean() < 1e-3 * expected.square().mean()
    codes = exact.encode(wave, lengths)
    assert half.encode(wave, lengths).shape == codes.shape
    for given in (None, lengths):
        said, wanted = half.decode(codes, given), exact.decode(codes, given)
        assert said.dtype == torch.float32
        assert (said - wanted).square().mean() < 1e-2 * wanted.square().mean()
    found, state = half.encode_step(wave, half.encoder_state(2), lengths)
    rest, _ = half.encode_flush(state)
    first, state = half.decode_step(codes, half.decoder_state(2), torch.tensor([5, 2]))
    last, _ = half.decode_flush(state)
    assert first.dtype == last.dtype == torch.float32 and found.dtype == rest.dtype == torch.int64


def test_lengths_that_cannot_be(directory):
    tokenizer, wave = load_tokenizer(directory), torch.randn(2, 1, 500)
    for lengths in ([600, 10], [-1, 10]):
        with pytest.raises(RequestError, match="room for 0 to 500"):
            tokenizer.encode(wave, torch.tensor(lengths))
        with pytest.raises(RequestError, match="room for 0 to 500"):
            tokenizer(wave, torch.tensor(lengths))
    codes = tokenizer.encode(wave)
    with pytest.raises(RequestError, match="none can be negative"):
        tokenizer.decode(codes, torch.tensor([-1, 10]))
    with pytest.raises(RequestError, match="there are 63"):
        tokenizer.decode(codes, torch.tensor([600, 10]))


def test_nothing_there(tmp_path):
    with pytest.raises(RequestError, match="neither a file, a directory, nor a hub id"):
        load_tokenizer(tmp_path / "nothing")
    with pytest.raises(RequestError, match="offline"):
        load_tokenizer("nobody/has-this-model@v1")
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "song.wav").write_bytes(b"RIFF")
    with pytest.raises(CheckpointError, match=r"song\.wav"):
        load_tokenizer(tmp_path / "song.wav")


def test_cut_or_foreign_files(directory):
    weights = directory / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cut short"):
        load_tokenizer(directory)
    weights.unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        load_tokenizer(directory)
    save_file({"a": torch.zeros(1)}, weights)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_tokenizer(directory)
    with pytest.raises(CheckpointError, match="named as Kyutai's"):
        load_tokenizer(weights)
    (directory / "codec.yaml").write_text("filters: many\n")
    with pytest.raises(CheckpointError, match=r"codec\.yaml"):
        load_tokenizer(directory)


def test_pickles_only_when_asked(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "encodec"}')
    torch.save({"quantizer.layers.0.codebook.embed": torch.zeros(4, 4)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="allow_pickle=True"):
        load_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="is missing"):  # read, but its configuration is empty
        load_tokenizer(tmp_path, allow_pickle=True)
    torch.save({"model": build_codec}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="more than weights"):
        load_tokenizer(tmp_path, allow_pickle=True)
