"""Mimi against transformers and against Kyutai's own package, on random weights that use every part of it."""

import copy
import os

import pytest
import torch
from safetensors.torch import save_file

from codec_parity import check_codes, check_modes, check_variety, check_wave, speech_like, spread_residual
from peers import peer
from proves import proves
from vivavoce.codecs import load_codec, save_codec
from vivavoce.tokenizers import load_tokenizer

transformers = peer("transformers")
loaders = peer("moshi.models.loaders")

LONG = os.environ.get("VIVAVOCE_LONG") == "1"
NARROW = {
    "num_filters": 4, "hidden_size": 64, "upsample_groups": 64, "num_hidden_layers": 2, "intermediate_size": 96,
    "codebook_size": 256, "codebook_dim": 48, "vector_quantization_hidden_dimension": 48,
}


@torch.no_grad()
def their_model(wave, seed=0, **sizes):
    """A random MimiModel whose transformers count and whose codebooks are spread over the latents of `wave`."""
    torch.manual_seed(seed)
    model = transformers.MimiModel(transformers.MimiConfig(**sizes)).eval()
    for name, parameter in model.named_parameters():
        if "layer_scale" in name:
            parameter.fill_(0.5)
    latents = model.encoder(wave).latents.transpose(1, 2).flatten(0, 1)
    quantizer = model.quantizer
    for half in (quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer):
        points = latents if half.input_proj is None else latents @ half.input_proj.weight[..., 0].T
        books = [layer.codebook.embed_sum for layer in half.layers]
        for layer in half.layers:
            layer.codebook.cluster_usage.uniform_(0.5, 2)
        spread_residual(points, books, seed)
        for layer in half.layers:
            layer.codebook.embed_sum *= layer.codebook.cluster_usage[:, None]
            layer.codebook._embed = None
    return model


@torch.no_grad()
def compare(model, codec, wave, codebooks):
    theirs = model.encode(wave, num_quantizers=codebooks).audio_codes
    check_variety(theirs)
    ties = check_codes(codec, wave, theirs)
    error = check_wave(codec.decode(theirs), model.decode(theirs).audio_values)
    print(f"ties {ties} of {theirs.numel()} codes, waveform within {error:.1e} of its deviation")


@proves("mimi", "weights")
def test_published_size_as_transformers(tmp_path):
    wave = speech_like(2.5, 24000)
    model = their_model(wave)
    model.save_pretrained(tmp_path)
    codec = load_tokenizer(tmp_path, codebooks=8)
    assert (codec.sample_rate, codec.frame_rate, codec.hop, codec.codebook_size) == (24000, 12.5, 1920, 2048)
    assert codec.quantizer.codebooks == 32
    compare(model, codec, wave, 8)
    state = codec.decoder_state(1)
    codes = codec.encode(wave[..., : 4 * 1920])
    whole = codec.decode(codes)
    for frame in range(4):
        piece, state = codec.decode_step(codes[..., frame : frame + 1], state)
        check_wave(piece, whole[..., frame * 1920 : (frame + 1) * 1920])
    check_modes(codec, wave[..., 10000 : 10000 + 4 * 1920 + 700], [1920, 7, 3000, 701])


@proves("mimi", "weights")
@pytest.mark.parametrize("samples", [1, 1919, 1920, 262000] + [2, 959, 961, 5000, 40000] * LONG)
def test_narrow_as_transformers(tmp_path, samples):
    """The longest has 273 frames at 25 Hz: more than the context of 250."""
    wave = speech_like(11, 24000, rows=2)[..., :262000]
    model = their_model(wave, **NARROW)
    model.save_pretrained(tmp_path)
    codec = load_tokenizer(tmp_path)
    assert codec.codebooks == 32, "transformers gives all codebooks unless told otherwise"
    wave = wave[..., -samples:]
    codec.codebooks = 8
    if samples < 10000:
        with torch.no_grad():
            check_codes(codec, wave, model.encode(wave, num_quantizers=8).audio_codes)
    else:
        compare(model, codec, wave, 8)
        check_modes(codec, wave, [1920, 7, 3000, 40000])
        save_codec(codec, tmp_path / "ours")
        again = load_codec(tmp_path / "ours")
        assert torch.equal(again.encode(wave), codec.encode(wave))


@torch.no_grad()
def kyutai_model(wave, narrow=True, books=8, seed=0):
    """A random Mimi of the moshi package, of the published size or a narrow one, prepared as above."""
    torch.manual_seed(seed)
    config = copy.deepcopy(loaders._mimi_config)
    config["quantizer"].update(n_q=books)
    if narrow:
        dim = 64
        config["seanet"].update(dimension=dim, n_filters=4)
        config["quantizer"].update(dimension=dim // 2, bins=256, input_dimension=dim, output_dimension=dim)
        config["transformer"].update(
            d_model=dim, num_layers=2, dim_feedforward=2 * dim, input_dimension=dim, output_dimensions=[dim]
        )
    model = loaders.get_mimi(None, config, num_codebooks=books)
    for name, parameter in model.named_parameters():
        if "layer_scale" in name:
            parameter.fill_(0.5)
    latents = model.encode_to_latent(wave, quantize=False).transpose(1, 2).flatten(0, 1)
    for half in (model.quantizer.rvq_first, model.quantizer.rvq_rest):
        points = latents @ half.input_proj.weight[..., 0].T
        books_of_half = [layer._codebook for layer in half.vq.layers]
        for book in books_of_half:
            book.cluster_usage.uniform_(0.5, 2)
        spread_residual(points, [book.embedding_sum for book in books_of_half], seed)
        for book in books_of_half:
            book.embedding_sum *= book.cluster_usage[:, None]
            book._initialized.fill_(1)
            book._cached_initialized = True
            book.register_buffer("_embedding", None, persistent=False)
    return model.eval()


@proves("mimi", "weights")
@pytest.mark.parametrize("samples, narrow", [(100, True), (1921, True), (262000, True), (99000, False)])
def test_kyutais_own_format(tmp_path, samples, narrow):
    wave = speech_like(11, 24000)[..., :262000]
    model = kyutai_model(wave[..., -samples:] if samples > 10000 else wave, narrow=narrow)
    file = tmp_path / "tokenizer-e351c8d8-checkpoint125.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, file)
    codec = load_tokenizer(file)
    assert codec.codebooks == 8 and codec.codebook_size == (256 if narrow else 2048)
    wave = wave[..., -samples:]
    with torch.no_grad():
        theirs = model.encode(wave)
        check_codes(codec, wave, theirs)
        if samples > 10000:
            check_variety(theirs)
        check_wave(codec.decode(theirs), model.decode(theirs))


@proves("mimi", "weights")
def test_streams_as_kyutais_package_streams(tmp_path):
    wave = speech_like(2, 24000)[..., : 20 * 1920]
    model = kyutai_model(wave)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, tmp_path / "tokenizer-a.safetensors")
    codec = load_tokenizer(tmp_path)
    with torch.no_grad(), model.streaming(1):
        encoder, decoder = codec.encoder_state(1), codec.decoder_state(1)
        for frame in wave.split(1920, dim=-1):
            theirs = model.encode(frame)
            codes, encoder = codec.encode_step(frame, encoder)
            assert torch.equal(codes, theirs)
            sound, decoder = codec.decode_step(codes, decoder)
            check_wave(sound, model.decode(theirs))
