"""Our codecs, encoders and vocoders written for transformers: it loads all of it and computes the same, and they come
back bit by bit."""

import json

import pytest
import torch
import torch.nn.functional as F

import vivavoce
from codec_parity import check_codes, check_variety, check_wave, speech_like
from peers import peer
from small_codecs import small
from vivavoce.cli import main
from vivavoce.codecs import codec_of, save_codec
from vivavoce.encoders.registry import build_encoder
from vivavoce.encoders.to_transformers import transformers_encoder
from vivavoce.encoders.units import UnitTokenizer
from vivavoce.errors import RequestError
from vivavoce.nn.likeness import unlike
from vivavoce.tokenizers import load_tokenizer
from vivavoce.tokenizers.to_transformers import save_transformers
from vivavoce.tokenizers.unit_parts import build_units
from vivavoce.tokenizers.units import UnitCodec
from vivavoce.vocoders.checkpoints import load_unit_vocoder
from vivavoce.vocoders.registry import build_vocoder

transformers = peer("transformers")


def opened(folder, kind=None):
    """The model that transformers makes of a directory, in which nothing is missing and nothing left over."""
    kind = kind or transformers.AutoModel
    model, said = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(said.values()), said
    return model.eval()


def same_but_for_counters(ours, again):
    """Bit by bit, each tensor but what counts the updates of a codebook."""
    mine, theirs = ours.state_dict(), again.state_dict()
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert name.endswith((".updates", ".initialized")) or torch.equal(tensor, theirs[name]), name


HUBERT = {"kind": "hubert", "conv_widths": [8] * 7, "width": 16, "layers": 2, "heads": 2, "hidden": 32,
          "position_kernel": 16, "position_groups": 4}  # fmt: skip
XCODEC = {"kind": "xcodec", "encoder_dim": 4, "decoder_dim": 32, "latent_dim": 12, "codebooks": 3, "codebook_size": 512,
          "semantic": HUBERT, "block_dilations": [1, 2]}  # fmt: skip
BERT = {"kind": "w2v_bert", "body": {"layers": 2, "width": 16, "heads": 2, "feedforward": 32}}
XCODEC2 = {"kind": "xcodec2", "encoder_dim": 4, "width": 32, "layers": 2, "heads": 4, "feedforward": 48,
           "semantic": BERT}  # fmt: skip
TURNED = {"layers": 2, "heads": 2, "feedforward": 24, "context": 6, "rope_interleaved": True}
CODECS = {
    "encodec": {"codebooks": 5, "use_codebooks": 2},
    "encodec 32 kHz": {"causal": False, "pad_mode": "zeros", "true_skip": True},
    "encodec-48khz": {"lstm": 2, "true_skip": False, "chunk": 4000, "stride": 3960},
    "mimi": {"quantizer": {"kind": "split_rvq", "codebook_width": 8, "smoothing": 0.0}, "whole_frames": False},
    "dac": {"latent_dim": 12},
}


def sound(codec, frames=400):
    wave = speech_like(frames * codec.hop / codec.sample_rate + 0.01, codec.sample_rate, rows=codec.channels)
    return wave[:, 0][None, :, : frames * codec.hop]


@torch.no_grad()
def their_codes(model, wave):
    found = model.encode(wave).audio_codes
    return found[0] if found.dim() == 4 and len(found) == 1 else found


@pytest.mark.parametrize("name", CODECS)
@torch.no_grad()
def test_a_codec_of_ours_is_the_same_in_transformers(name, tmp_path):
    codec = small(name.split()[0], codebook_size=2048, **CODECS[name])
    assert save_transformers(codec, tmp_path) == []
    model, again = opened(tmp_path), load_tokenizer(tmp_path)
    same_but_for_counters(codec, again)
    assert again.codebooks == codec.codebooks
    wave = sound(codec)
    theirs = their_codes(model, wave)
    if name == "encodec-48khz":  # chunks side by side, of one length each
        wave = wave[..., : codec.stride]
        theirs = model.encode(wave).audio_codes[0]
        said = model.decode(theirs[None], model.encode(wave).audio_scales).audio_values
        ours, scales = codec.encode_scaled(wave)
        assert torch.equal(ours, theirs)
        check_variety(theirs)
        check_wave(codec.decode(ours, torch.tensor([wave.shape[-1]]), scales), said)
        return
    check_codes(codec, wave, theirs)
    check_variety(theirs)
    said = model.decode(theirs[None], [None]) if "encodec" in name else model.decode(audio_codes=theirs)
    check_wave(codec.decode(theirs), said.audio_values.view(1, codec.channels, -1))


@torch.no_grad()
def test_mimi_as_kyutai_has_it_becomes_transformers(tmp_path):
    """There queries turn in halves, and zeros do not fill the last frame: the first is another order of the same
    rows, the second is said."""
    sizes = {"kind": "split_rvq", "codebook_width": 8, "smoothing": 0.0}
    codec = small("mimi", transformer=TURNED, quantizer=sizes)
    (note,) = save_transformers(codec, tmp_path)
    assert "a last frame that is not full" in note
    model, wave = opened(tmp_path), sound(codec)
    theirs = their_codes(model, wave)
    check_codes(codec, wave, theirs)
    check_wave(codec.decode(theirs), model.decode(theirs).audio_values)
    check_codes(load_tokenizer(tmp_path), wave, theirs)


@pytest.fixture(scope="module")
def semantic_codecs():
    torch.manual_seed(0)
    made = {options["kind"]: codec_of(options).eval() for options in (XCODEC, XCODEC2)}
    with torch.no_grad():
        for codec in made.values():
            for name, parameter in codec.named_parameters():
                parameter.add_(0.05 * torch.randn_like(parameter) * (1 if "quantizer" not in name else 0))
        codec = made["xcodec"]
        latents = codec.encode_latents(speech_like(0.8, 16000)).flatten(0, 1)
        for book in codec.quantizer.books():
            entries = latents.mean(0) + torch.randn(book.size, latents.shape[1]) * latents.std(0)
            book.load(entries)
            latents = latents - book.lookup(book.search(latents))
    return made


@torch.no_grad()
def test_x_codec_is_the_same_in_transformers(semantic_codecs, tmp_path):
    codec, wave = semantic_codecs["xcodec"], speech_like(1.2, 16000)
    assert save_transformers(codec, tmp_path) == []
    model = opened(tmp_path)
    same_but_for_counters(codec, load_tokenizer(tmp_path))
    theirs = model.encode(wave).audio_codes
    check_codes(codec, wave, theirs)
    check_variety(theirs)
    check_wave(codec.decode(theirs), model.decode(theirs).audio_values)


@torch.no_grad()
def test_x_codec_2_is_the_same_in_transformers(semantic_codecs, tmp_path):
    codec, wave = semantic_codecs["xcodec2"], speech_like(0.3, 16000)
    assert save_transformers(codec, tmp_path) == []
    model = opened(tmp_path)
    same_but_for_counters(codec, load_tokenizer(tmp_path))
    filled = F.pad(wave, (0, 1 + -(wave.shape[-1] + 1) % 320))
    extractor = transformers.SeamlessM4TFeatureExtractor(feature_size=80, num_mel_bins=80, sampling_rate=16000)
    features = extractor(F.pad(filled, (160, 160))[0, 0].numpy(), sampling_rate=16000, return_tensors="pt")
    theirs = model.encode(filled, input_features=features.input_features).audio_codes.long()
    check_codes(codec, wave, theirs)
    check_wave(codec.decode(theirs), model.decode(theirs).audio_values)


LARGE = {"stable": True, "front_norm": "layer", "conv_bias": True, "normalize": True}
SIZES = {**{name: value for name, value in HUBERT.items() if name != "kind"}, "layers": 3}
CONFORMER = {"layers": 2, "width": 16, "heads": 2, "feedforward": 32, "kernel": 5}
ENCODERS = {
    "hubert": SIZES,
    "hubert at 25 Hz": {**SIZES, "position_batch_norm": True, "projection_norm": False},
    "wav2vec2": {**SIZES, **LARGE},
    "wavlm": {**SIZES, **LARGE, "relative_buckets": 32},
    "unispeech": SIZES,
    "unispeech_sat": {**SIZES, **LARGE},
    "data2vec": {**SIZES, "position_kernel": 9, "position_layers": 2},
    "w2v_bert": {"body": {**CONFORMER, "most_left": 5, "most_right": 2}},
    "w2v_bert with relative positions": {"body": {**CONFORMER, "positions": "relative"}},
    "wav2vec2_conformer": {"body": CONFORMER, "conv_widths": [8] * 7},
    "wav2vec2_conformer that rotates": {"body": {**CONFORMER, "positions": "rope_before"}, "conv_widths": [8] * 7},
    "whisper": {"width": 16, "layers": 2, "heads": 2, "hidden": 32, "positions": 100},
}


@pytest.fixture(scope="module")
def encoders():
    """Random ones, in which no parameter and no statistic has its first value."""
    torch.manual_seed(0)
    made = {name: build_encoder({"kind": name.split()[0], **sizes}) for name, sizes in ENCODERS.items()}
    with torch.no_grad():
        for encoder in made.values():
            for parameter in encoder.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            for name, buffer in encoder.named_buffers():
                if "running_" in name:
                    buffer.add_(0.3 * torch.rand_like(buffer))
    return made


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_an_encoder_of_ours_is_the_same_in_transformers(name, encoders, tmp_path):
    encoder, kind = encoders[name], name.split()[0]
    units = UnitTokenizer(encoder, torch.randn(20, encoder.width), None, {"kind": kind, **ENCODERS[name]})
    assert save_transformers(UnitCodec(units), tmp_path) == []
    model = opened(tmp_path, transformers.models.whisper.modeling_whisper.WhisperEncoder if kind == "whisper" else None)
    again = build_units({"kind": kind, "source": str(tmp_path)}, 20, centers=str(tmp_path / "centers.npy"))
    if kind == "whisper":  # softmax cancels the keys' biases, which it does not have
        for block in encoder.blocks:
            block.key.bias.zero_()
    same_but_for_counters(UnitCodec(units), again)
    wave = 0.1 * torch.randn(16_000)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    inputs = extractor(wave.numpy(), sampling_rate=16000, return_tensors="pt")
    wanted = model(**{name: value for name, value in inputs.items() if name != "attention_mask"}).last_hidden_state
    ours = encoder.features([wave]).values
    assert (ours - wanted[:, : ours.shape[1]]).abs().max() < 1e-3 * ours.std(1).mean()
    assert torch.equal(again.units.encoder.features([wave]).values, ours)


VOCODER = {"kind": "unit_hifigan", "units": 20, "unit_width": 12, "speakers": 3, "speaker_width": 6, "languages": 2,
           "language_width": 4, "duration_hidden": 12,
           "generator": {"width": 32, "rates": [5, 4, 4, 2, 2], "kernels": [11, 8, 8, 4, 4],
                         "residual_kernels": [3, 5], "residual_dilations": [[1, 3], [1, 3]]}}  # fmt: skip


@pytest.fixture(scope="module")
def voice():
    torch.manual_seed(0)
    vocoder = build_vocoder(VOCODER).eval()
    with torch.no_grad():
        for parameter in vocoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return vocoder


@torch.no_grad()
def test_units_take_their_vocoder_along(encoders, voice, tmp_path, capsys):
    units = UnitTokenizer(encoders["hubert"], torch.randn(20, 16), 2, {"kind": "hubert", **SIZES})
    UnitCodec(units, voice).save(tmp_path / "units")
    with pytest.raises(SystemExit) as left:
        main(["convert", str(tmp_path / "units"), "--to", "transformers", "-o", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert left.value.code == 0 and "in the format of transformers" in said and "hidden_states[2]" in said
    model = opened(tmp_path / "out" / "vocoder", transformers.models.seamless_m4t.modeling_seamless_m4t.
                   SeamlessM4TCodeHifiGan)  # fmt: skip
    same_but_for_counters(voice, load_unit_vocoder(tmp_path / "out" / "vocoder"))
    spoken, speaker, language = torch.randint(5, 20, (1, 12)), torch.tensor([2]), torch.tensor([1])
    theirs, _ = model(spoken, speaker[None], language[None])
    ours, _ = voice(spoken, speaker=speaker, language=language)
    check_wave(ours[:, 0], theirs)


def test_what_transformers_cannot_hold_is_said(encoders, voice, tmp_path):
    """Nothing is written, and the reason is told: what is another, and what there is."""
    plain = build_vocoder({**VOCODER, "speakers": 0, "languages": 0})
    units = UnitTokenizer(encoders["hubert"], torch.randn(20, 16), 2, {"kind": "hubert", **SIZES},
                          scale=torch.full((16,), 2.0))  # fmt: skip
    notes = save_transformers(UnitCodec(units, plain), tmp_path / "units")
    assert "without the vocoder" in notes[0] and "without the centers" in notes[1]
    causal = build_encoder({"kind": "w2v_bert", "body": {**CONFORMER, "causal": True}})
    for thing, says in (
        (small("snac"), r"no architecture for a 'snac'; of codecs it has EnCodec"),
        (small("causal"), "this codec is neither"),
        (small("encodec", activation="gelu"), "is another codec than this"),
        (small("encodec", both_ways=True, causal=False), "cannot hold this model: .*lstm"),
        (small("mimi"), "smoothing is 1e-05, there 0.0"),
        (codec_of({**XCODEC, "semantic": BERT}), "hears by a SpeechTransformer, not a SpeechConformer"),
        (UnitCodec(UnitTokenizer(build_encoder({"kind": "mfcc"}), torch.randn(4, 39))), "no architecture for a MFCC"),
        (UnitCodec(UnitTokenizer(causal, torch.randn(4, 16))), "another encoder.*causal is True, there False"),
    ):
        with pytest.raises(RequestError, match=says):
            save_transformers(thing, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_the_command_writes_codecs_and_brings_them_back(tmp_path, capsys):
    """Our directory -> transformers' -> ours: the same codec; --dtype is for models of language."""
    codec = small("dac")
    save_codec(codec, tmp_path / "mine")
    for model, to, out, code, says in (
        ("mine", "transformers", "theirs", 0, "in the format of transformers"),
        ("theirs", "vivavoce", "again", 0, "in the format of vivavoce"),
        ("mine", "transformers", "theirs", 2, "not an empty folder"),
        ("nothing", "transformers", "other", 2, "nothing"),
    ):
        with pytest.raises(SystemExit) as left:
            main(["convert", str(tmp_path / model), "--to", to, "-o", str(tmp_path / out)])
        said = capsys.readouterr()
        assert left.value.code == code and says in said.out + said.err
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["model_type"] == "dac"
    same_but_for_counters(codec, vivavoce.load_tokenizer(tmp_path / "again"))
    with pytest.raises(SystemExit):
        main(["convert", str(tmp_path / "mine"), "--to", "vivavoce", "-o", str(tmp_path / "b"), "--dtype", "float16"])
    assert "own precision" in capsys.readouterr().err


def test_weight_norm_is_fused_to_the_same_bits_and_differences_are_found():
    from vivavoce.nn.weight_norm import length_and_direction

    torch.manual_seed(0)
    for axis, shape in ((0, (37, 5, 3)), (2, (24, 6, 128))):
        weight = torch.randn(shape)
        weight.select(axis, 1).zero_()
        length, direction = length_and_direction(weight, axis)
        assert torch.equal(torch._weight_norm(direction, length, axis), weight)
        assert length.shape == torch.nn.utils.parametrizations.weight_norm(
            torch.nn.Conv1d(5 if axis == 0 else 6, shape[0], shape[2]), dim=axis
        ).parametrizations.weight.original0.shape
    one, other = small("causal"), small("causal")
    assert unlike(one, other) == []
    with torch.no_grad():
        other.encoder.parts[0].bias[0] += 1e-6
    assert unlike(one, other) == ["the values of encoder.parts.0.bias are others"]
    assert transformers_encoder(build_encoder({"kind": "hubert", **SIZES})).config["model_type"] == "hubert"
