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
