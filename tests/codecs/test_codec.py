"""Codecs of the SEANet family: one computation for whole signals, streams and batches; training's and saving's face."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codec_parity import check_modes, speech_like
from proves import proves
from streaming_contract import check_gradient, check_published, check_stack
from vivavoce.codecs import PUBLISHED, CodecConfig, build_codec, codec_of, load_codec, save_codec, seanet
from vivavoce.codecs.whole_frames import WholeFrames
from vivavoce.errors import CheckpointError, RecipeError, RequestError
from vivavoce.tokenizers.fingerprint import fingerprint

LONG = os.environ.get("VIVAVOCE_LONG") == "1"
MINI = {"sample_rate": 16000, "filters": 2, "ratios": [8, 5, 4, 4, 2], "dim": 16, "codebooks": 3, "codebook_size": 32}
NARROW = {
    "encodec-24khz": {"filters": 2, "dim": 8, "codebooks": 8, "codebook_size": 64, "quantizer": {}},
    "mimi": {
        "filters": 2, "dim": 16, "codebooks": 8, "codebook_size": 64, "upsample_groups": 16,
        "quantizer": {"kind": "split_rvq", "codebook_width": 8},
        "transformer": {"layers": 2, "heads": 2, "feedforward": 24, "context": 6, "layer_scale": 0.5},
    },
    "mini": {},
    "centred": {"causal": False, "pad_mode": "reflect", "ratios": [4, 2], "residual_layers": 2},
    "trimmed left": {"trim_right": 0.5, "ratios": [4, 2], "final_activation": "tanh"},
}


def options_of(name):
    return {**PUBLISHED.get(name, MINI), **NARROW[name]}


@pytest.fixture(scope="module")
def stacks():
    """Both streaming stacks of every narrow codec, in float64."""
    torch.manual_seed(0)
    codecs = {name: build_codec(options_of(name)).double().eval() for name in NARROW}
    return {f"{name} {side}": getattr(codec, side) for name, codec in codecs.items() for side in ("encoder", "decoder")}


@pytest.mark.parametrize("name", [f"{name} {side}" for name in NARROW for side in ("encoder", "decoder")])
@given(sizes=st.lists(st.integers(0, 5), min_size=4, max_size=4), seed=st.integers(0, 2**20))
@settings(max_examples=30 if LONG else 2)
@torch.no_grad()
def test_stacks_keep_the_streaming_contract(stacks, name, sizes, seed):
    check_stack(stacks[name], first_width(name), sizes, seed)


def first_width(name):
    return 1 if name.endswith("encoder") else options_of(name.rsplit(" ", 1)[0])["dim"]


@pytest.mark.parametrize("name", ["mini encoder", "mini decoder", "centred encoder", "centred decoder",
                                  "trimmed left decoder", "encodec-24khz encoder", "encodec-24khz decoder"])
def test_stacks_publish_the_truth(stacks, name):
    with torch.no_grad():
        check_published(stacks[name], first_width(name))


@pytest.mark.parametrize("name", ["mini encoder", "mini decoder", "centred encoder"])
def test_gradient_flows_through_stacks(stacks, name):
    stack = stacks[name]
    check_gradient(stack, first_width(name), 3 * stack.chunk + int(stack.warmup))


@pytest.mark.parametrize("name", [
    pytest.param("encodec-24khz", marks=proves("encodec", "mechanism")),
    pytest.param("mimi", marks=proves("mimi", "mechanism")),
    "mini",
])
def test_whole_streamed_and_batched_codes(name):
    torch.manual_seed(0)
    codec = build_codec(options_of(name)).eval()
    check_modes(codec, speech_like(1.5, codec.sample_rate), [codec.hop, 7, 3 * codec.hop, 10000])


def test_a_consumed_state_gives_the_same_and_is_overwritten():
    torch.manual_seed(0)
    codec = build_codec(options_of("mimi")).eval()
    wave, codes = speech_like(1.2, 24000)[..., : 14 * 1920], torch.randint(64, (1, 8, 14))
    walks = [(codec.encode_step, codec.encoder_state, wave.split(1920, -1)),
             (codec.decode_step, codec.decoder_state, codes.split(1, -1))]
    for step, start, chunks in walks:
        kept, consumed = start(1), start(1)
        for chunk in chunks:
            wanted, kept = step(chunk, kept)
            before = consumed
            got, consumed = step(chunk, consumed, consume=True)
            assert torch.equal(got, wanted)
        layer = next(name for name, part in before.items() if "layer_0" in part)
        assert torch.equal(before[layer]["layer_0"]["keys"], consumed[layer]["layer_0"]["keys"])


def test_tiles_change_nothing():
    torch.manual_seed(0)
    codec = build_codec(options_of("mimi")).double().eval()
    wave = speech_like(2, 24000, rows=2).double()
    lengths = torch.tensor([wave.shape[-1], 30001])
    with torch.no_grad():
        codec.tile = 1e9
        latents = codec.encode_latents(wave, lengths)
        sound = codec.decode_latents(latents)
        for tile in (0.1, 0.3):
            codec.tile = tile
            torch.testing.assert_close(codec.encode_latents(wave, lengths), latents)
            torch.testing.assert_close(codec.decode_latents(latents), sound)


def test_frames_are_the_published_formula():
    codec = build_codec(options_of("mimi")).eval()
    for samples in (1, 1919, 1920, 1921, 4000):
        assert codec.frames(samples) == -(-samples // 1920) == codec.encode(torch.zeros(1, 1, samples)).shape[-1]
    assert torch.equal(codec.frames(torch.tensor([1, 1921])), torch.tensor([1, 2]))
    assert codec.bits_per_second == pytest.approx(12.5 * 8 * 6)
    codes = codec.encode(torch.randn(2, 1, 4000))
    assert codec.decode(codes).shape == (2, 1, 3 * 1920)
    cut = codec.decode(codes, torch.tensor([4000, 17]))
    assert cut.shape == (2, 1, 4000) and not cut[1, :, 17:].any()
    torch.testing.assert_close(cut[0], codec.decode(codes)[0, :, :4000], atol=1e-6, rtol=0)


@proves("mimi", "mechanism")
def test_mimis_semantic_codebook_stands_beside_the_acoustic_ones():
    """Both hear the latents themselves, their outputs are summed; a frame is 80 ms and looks at nothing later."""
    torch.manual_seed(0)
    codec = build_codec(options_of("mimi")).eval()
    latents = codec.encode_latents(torch.randn(1, 1, 5 * 1920)).detach()
    codes = codec.quantizer.encode(latents)
    assert torch.equal(codes[:, :1], codec.quantizer.semantic.encode(latents))
    assert torch.equal(codes[:, 1:], codec.quantizer.acoustic.encode(latents))
    halves = codec.quantizer.semantic.decode(codes[:, :1]) + codec.quantizer.acoustic.decode(codes[:, 1:])
    torch.testing.assert_close(codec.quantizer.decode(codes), halves)
    assert (codec.hop, codec.frame_rate, codec.encoder.lookahead, codec.decoder.lookahead) == (1920, 12.5, 0, 0)


def test_lockstep_rows_do_not_feel_each_other():
    """The same arithmetic whatever the other rows hear: equal to the bit, at full row count."""
    torch.manual_seed(0)
    codec = build_codec(options_of("mimi")).eval()
    frames = speech_like(1, 24000, rows=4).split(codec.hop, dim=-1)
    results = []
    for others in (0.0, 1.0):
        state, decoder, said = codec.encoder_state(4), codec.decoder_state(4), []
        for number, frame in enumerate(frames[:6]):
            frame = frame.clone()
            frame[1:] *= others
            active = torch.tensor([1, 1, number % 2, number < 3]) * (1 if others else torch.tensor([1, 0, 1, 1]))
            codes, state = codec.encode_step(frame, state, active * codec.hop)
            sound, decoder = codec.decode_step(codes, decoder, active)
            said.append((codes[0], sound[0]))
        results.append(said)
    for (codes, sound), (codes_too, sound_too) in zip(*results):
        assert torch.equal(codes, codes_too)
        torch.testing.assert_close(sound, sound_too, atol=1e-6, rtol=0)


def test_training_reaches_every_part():
    torch.manual_seed(0)
    codec = build_codec({**options_of("mimi"), "quantizer": {"kind": "split_rvq", "codebook_width": 8}}).train()
    wave = speech_like(0.4, 24000, rows=2)
    made = codec(wave, torch.tensor([wave.shape[-1], 5000]))
    assert made.audio.shape == wave.shape and not made.audio[1, :, 5000:].any()
    assert made.codes.shape == (2, 8, codec.frames(wave.shape[-1]))
    ((made.audio - wave).square().mean() + made.losses["quantizer"]).backward()
    for name, parameter in codec.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all() and parameter.grad.any(), name


def test_fewer_codebooks():
    codec = build_codec(MINI).eval()
    wave = torch.randn(1, 1, 5000)
    all_three = codec.encode(wave)
    codec.codebooks = 2
    assert torch.equal(codec.encode(wave), all_three[:, :2])
    assert codec.decode(all_three[:, :2]).shape[-1] == 4 * 1280
    with pytest.raises(RequestError, match="codebooks=4"):
        codec.codebooks = 4


def test_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    codec = build_codec(options_of("mimi")).eval()
    codec.codebooks = 5
    save_codec(codec, tmp_path)
    again = load_codec(tmp_path)
    wave = torch.randn(1, 1, 4000)
    assert torch.equal(again.encode(wave), codec.encode(wave)) and again.codebooks == 5
    assert fingerprint(again) == fingerprint(codec)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codec.yaml", "model.safetensors"]
    with torch.no_grad():
        again.decoder.parts[-1].bias += 1e-3
    assert fingerprint(again) != fingerprint(codec)
    (tmp_path / "codec.yaml").write_text((tmp_path / "codec.yaml").read_text().replace("filters: 2", "filters: 4"))
    with pytest.raises(CheckpointError, match="does not fit"):
        load_codec(tmp_path)


def test_a_directory_says_which_kind_it_holds(tmp_path):
    torch.manual_seed(0)
    codec = codec_of({"kind": "spectral_codec", "stem": 8, "widths": [8, 8, 16], "dim": 16, "fft_size": 320}).eval()
    save_codec(codec, tmp_path)
    assert (tmp_path / "codec.yaml").read_text().startswith("kind: spectral_codec\n")
    wave = torch.randn(1, 1, 4000)
    assert torch.equal(load_codec(tmp_path).encode(wave), codec.encode(wave))
    save_codec(build_codec(MINI), tmp_path)
    text = (tmp_path / "codec.yaml").read_text()
    (tmp_path / "codec.yaml").write_text(text.removeprefix("kind: codec\n"))  # as it was written before there were two
    assert load_codec(tmp_path).config == CodecConfig.of(MINI)
    (tmp_path / "codec.yaml").write_text(text.replace("kind: codec", "kind: opus"))
    with pytest.raises(CheckpointError, match="'opus' is none of codec, spectral_codec, convnext_codec, encodec-24khz"):
        load_codec(tmp_path)


def test_published_sizes_by_name_with_what_differs():
    narrow = {"filters": 2, "dim": 16, "codebook_size": 64, "upsample_groups": 16, "transformer": {"layers": 1}}
    codec = codec_of({"kind": "mimi", **narrow})
    transformer = {**PUBLISHED["mimi"]["transformer"], "layers": 1}
    assert codec.config == CodecConfig.of({**PUBLISHED["mimi"], **narrow, "transformer": transformer})
    assert codec.frame_rate == 12.5 and codec.codebooks == 8


def test_options_come_back():
    for options in (MINI, *PUBLISHED.values()):
        config = CodecConfig.of(options)
        assert CodecConfig.of(config.options()) == config


@pytest.mark.parametrize("change, message", [
    ({"filter": 3}, "'filter' is unknown"),
    ({"ratios": []}, "strides"),
    ({"filters": 3}, "compress 2"),
    ({"activation": "swish"}, "'swish'"),
    ({"quantizer": {"kind": "vqq"}}, "vqq"),
    ({"transformer": {"layers": 2, "heads": 2, "depth": 3}}, "'depth'"),
])
def test_impossible_codecs(change, message):
    with pytest.raises(RecipeError, match=message):
        build_codec({**MINI, **change})


def test_wrong_waveforms_and_codes():
    codec = build_codec(MINI).eval()
    with pytest.raises(RequestError, match=r"\[batch, 1, samples\]"):
        codec.encode(torch.zeros(1, 2, 1280))
    with pytest.raises(RequestError, match="made by another tokenizer"):
        codec.decode(torch.full((1, 3, 2), 32))
    with pytest.raises(RequestError, match="need 3 frames"):
        codec.decode(torch.zeros(1, 3, 2, dtype=torch.int64), torch.tensor([2561]))


def test_whole_frames_fill_the_last_one():
    fill = WholeFrames(5, 1)
    long, exact = fill(torch.ones(2, 7, 1), torch.tensor([7, 5]))[:, :, 0].tolist()
    assert long == [1] * 7 + [0] * 3 and exact[:5] == [1] * 5
    assert fill.frames(torch.tensor([7, 5, 0])).tolist() == [10, 5, 0]


def test_published_sizes():
    """Parameters of the published models: 79 million with all codebooks for Mimi, 15 for EnCodec's two stacks."""
    with torch.device("meta"):
        config = CodecConfig.of(PUBLISHED["encodec-24khz"])
        for stack in (seanet.encoder(config), seanet.decoder(config)):
            assert round(sum(p.numel() for p in stack.parameters()) / 1e6, 1) == 7.4


def in_chunks():
    torch.manual_seed(0)
    small = {"filters": 4, "dim": 8, "ratios": [4, 2], "chunk": 400, "stride": 396, "codebooks": 4, "codebook_size": 16}
    return build_codec({**PUBLISHED["encodec-48khz"], **small, "quantizer": {}}).eval()


@torch.no_grad()
def test_training_hears_a_row_of_several_chunks_as_one():
    codec, wave = in_chunks(), torch.randn(2, 2, 1000)
    both = codec(wave, torch.tensor([1000, 600]))
    for row, length in enumerate((1000, 600)):
        alone = codec(wave[row : row + 1, :, :length])
        torch.testing.assert_close(both.audio[row, :, :length], alone.audio[0], atol=1e-5, rtol=0)
        assert torch.equal(both.codes[row, :, : alone.codes.shape[2]], alone.codes[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_chunks_in_half_precision(dtype):
    codec, wave = in_chunks(), torch.randn(2, 2, 1000)
    codes, scales = codec.encode_scaled(wave)
    expected = codec.decode(codes, scales=scales)
    half = codec.to(dtype=dtype)
    found, own = half.encode_scaled(wave, torch.tensor([1000, 300]))
    assert found.shape == codes.shape and own.dtype == torch.float32
    said = half.decode(codes, scales=scales)
    assert said.dtype == torch.float32
    assert (said - expected).square().mean() < 1e-2 * expected.square().mean()
    for lengths in ([1001, 300], [-1, 300]):
        with pytest.raises(RequestError, match="room for 0 to 1000"):
            half.encode(wave, torch.tensor(lengths))
