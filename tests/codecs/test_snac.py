"""SNAC in small: built from a recipe by its published name, trained, used; levels of different rate, noise, windows."""

import json
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vivavoce
from codec_parity import check_modes, check_wave, speech_like
from proves import proves
from streaming_contract import check_gradient, check_published, check_stack
from vivavoce.audio import Audio
from vivavoce.cli import main
from vivavoce.codecs import PUBLISHED_SNAC, MultiRateCodec, codec_of, load_codec, save_codec
from vivavoce.codecs.snac import SNACConfig, build_snac
from vivavoce.data.clips import Clip
from vivavoce.data.store import TokenStore
from vivavoce.data.tokenize import spec_of, tokenize
from vivavoce.errors import DataError, RecipeError, RequestError
from vivavoce.layouts import StreamSpec, build_layout
from vivavoce.systems import build, load
from vivavoce.tokenizers.compact_file import read_codes
from vivavoce.training.codec_task import CodecTask
from vivavoce.training.initialise import is_convolution, unit_variance
from vivavoce.training.reconstruction import MultiScaleMel

LONG = os.environ.get("VIVAVOCE_LONG") == "1"
SMALL = {"encoder_dim": 4, "decoder_dim": 64, "codebook_size": 32, "quantizer": {"codebook_width": 4}}
RECIPE = {
    "system": "snac",
    "sample_rate": 24000,
    "tokenizers": {"voice": {"kind": "snac-24khz"}},
    "streams": {"voice": {"tokenizer": "voice"}},
    "smoke": {"tokenizers.voice": SMALL},
}
NARROW = {name: {**PUBLISHED_SNAC[name], **SMALL} for name in ("snac-24khz", "snac-32khz")}
NARROW["short windows"] = {**SMALL, "encoder_dim": 16, "encoder_rates": [3, 2], "decoder_rates": [3, 2],
                           "vq_strides": [2, 1], "attn_window_size": 3}  # fmt: skip


def narrow(name):
    """Signals of unit variance in all its layers, a waveform of deviation 0.2: untrained, they would fade."""
    torch.manual_seed(0)
    codec = build_snac(NARROW[name]).eval()
    wave, made = speech_like(0.5, codec.sample_rate), []
    unit_variance(codec.encoder, lambda: made.append(codec.encode_latents(wave)))
    last = [part for part in codec.decoder.modules() if is_convolution(part)][-1]
    unit_variance(codec.decoder, lambda: codec.decode_latents(made[0]), last=last, scale=0.2)
    return codec


@pytest.fixture(scope="module")
def stacks():
    codecs = {name: narrow(name).double() for name in NARROW}
    return {f"{name} {side}": getattr(codec, side) for name, codec in codecs.items() for side in ("encoder", "decoder")}


SIDES = [f"{name} {side}" for name in NARROW for side in ("encoder", "decoder")]


def width(name):
    config = SNACConfig.of(NARROW[name.rsplit(" ", 1)[0]])
    return 1 if name.endswith("encoder") else config.encoded * config.latents


@proves("snac", "mechanism")
@pytest.mark.parametrize("name", SIDES)
@given(sizes=st.lists(st.integers(0, 4), min_size=3, max_size=3), seed=st.integers(0, 2**20))
@settings(max_examples=20 if LONG else 1)
@torch.no_grad()
def test_stacks_keep_the_streaming_contract(stacks, name, sizes, seed):
    """The noise as well: each row's is its own, whatever the chunks and the others."""
    check_stack(stacks[name], width(name), sizes, seed)


@pytest.mark.parametrize("name", ["short windows encoder", "short windows decoder", "snac-24khz decoder"])
def test_stacks_publish_the_truth(stacks, name):
    with torch.no_grad():
        check_published(stacks[name], width(name))


@pytest.mark.parametrize("name", ["short windows encoder", "short windows decoder"])
def test_gradient_flows_through_stacks(stacks, name):
    check_gradient(stacks[name], width(name), 6 * stacks[name].chunk + int(stacks[name].warmup))


@proves("snac", "mechanism")
@pytest.mark.parametrize("name", list(NARROW))
def test_whole_streamed_and_batched_codes(name):
    codec = narrow(name)
    wave = speech_like(1.3, codec.sample_rate)[..., : min(29007, 150 * codec.hop + 7)]
    check_modes(codec, wave, [codec.hop, 7, 3 * codec.hop, 5000])


@proves("snac", "recipe")
def test_a_recipe_builds_trains_and_generates(tmp_path):
    torch.manual_seed(0)
    model = build(RECIPE, "smoke")
    codec = model.system.codec
    assert isinstance(codec, MultiRateCodec) and codec.ratios == (1, 2, 4) and codec.hop == 2048
    wave = speech_like(0.3, 24000, rows=2)
    mel = MultiScaleMel(24000, {"windows": [128, 512], "mels": [20, 40]})
    optimizer, losses = torch.optim.Adam(codec.parameters(), 1e-2), []
    codec.train()
    for _ in range(15):
        heard = codec(wave)
        distance = mel(heard.audio, wave)
        optimizer.zero_grad()
        (distance + heard.losses["quantizer"]).backward()
        optimizer.step()
        losses.append(float(distance.detach()))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5]), losses
    model.system.eval()
    audio = Audio(wave[0].numpy()[:, :7001], 24000)
    made = model.resynth(audio)
    assert made.audio.samples.shape == (1, 7001) and made.codes.shape == (3, 16)
    assert (made.codes[0, 4:] == -1).all() and (made.codes[2] >= 0).all()
    assert made.tokens_per_second == pytest.approx(24000 / 2048 * 7) and made.bits_per_second == pytest.approx(
        24000 / 2048 * 7 * 5
    )
    model.save(tmp_path)
    again = load(tmp_path).resynth(audio)
    assert (again.codes == made.codes).all() and (again.audio.samples == made.audio.samples).all()


@pytest.mark.parametrize("kind", ["snac-24khz", "dac-24khz"])
def test_the_common_training_takes_it(kind):
    """Calibrated on clips, judged by discriminators, with figures for each codebook."""
    torch.manual_seed(0)
    codec = codec_of({"kind": kind, **SMALL})
    clips, judges = list(speech_like(0.6, 24000, rows=3)), {"members": [{"kind": "stft", "size": 128, "filters": 2}]}
    task = CodecTask(codec.train(), clips, held_out=clips[:1], seconds=0.3, batch=2, mel="dac", turns=1.0,
                     adversarial="lsgan", discriminators=judges, calibrate=True)  # fmt: skip
    wave = task.batch(0, 0, 1)
    with torch.no_grad():
        latents = codec.encode_latents(wave)
    assert 0.3 < latents.std() < 3
    found = {}
    for name, losses in task.updates(wave, 0):
        losses["loss"].backward()
        found |= losses
        assert all(p.grad is not None for p in task.modules()[name].parameters() if p.requires_grad)
    assert {"mel", "adversarial", "features", "quantizer", "usage/2", "perplexity/0"} <= found.keys()
    with torch.no_grad():
        figures = task.evaluate(0)
    assert all(1 <= figures[f"used/{level}"] <= 32 for level in range(codec.codebooks))


@proves("snac", "mechanism")
@torch.no_grad()
def test_coarse_levels_cover_several_latents():
    """A code of the first level is the mean of four latents, of the last of one; each level hears what is left."""
    codec = narrow("snac-24khz")
    wave = speech_like(1.0, 24000)
    levels = codec.levels(codec.encode(wave))
    assert [tuple(level.shape) for level in levels.values()] == [(1, 12), (1, 24), (1, 48)]
    latents = codec.encode_latents(wave).view(1, 48, -1)
    (first, *_) = codec.quantizer.books()
    means = latents.view(1, 12, 4, -1).mean(2)
    assert torch.equal(first.search(first.input_projection(means)), levels["level_0"])
    for name, reach in (("level_0", 4), ("level_1", 2), ("level_2", 1)):
        other = {key: level.clone() for key, level in levels.items()}
        other[name][0, 3] = (other[name][0, 3] + 1) % 32
        before, after = (codec.quantizer.decode(codec.joined(each)).view(48, -1) for each in (levels, other))
        changed = (before != after).any(1).nonzero()[:, 0].tolist()
        assert changed == list(range(3 * reach, 4 * reach))


@proves("snac", "mechanism")
def test_levels_are_a_stream_that_layouts_place():
    """Flattened, a frame is 1 + 2 + 4 tokens in the order of time; and back."""
    codec = narrow("snac-24khz")
    codes = codec.encode(speech_like(1.0, 24000))
    frames = codes.shape[2] // 4
    spec = StreamSpec("voice", codec.codebooks, codec.frame_rate, codec.ratios)
    places = build_layout({"kind": "flat"}, [spec]).place({"voice": torch.tensor([frames])})
    assert places.level[0, :7].tolist() == [0, 1, 2, 2, 1, 2, 2]
    tokens = codes[0, places.level[0], places.index[0]]
    assert len(tokens) == 7 * frames and (tokens >= 0).all()
    back = torch.full_like(codes, -1)
    back[0, places.level[0], places.index[0]] = tokens
    assert torch.equal(back, codes)


@torch.no_grad()
def test_levels_as_a_mapping_or_a_list():
    codec = narrow("snac-24khz")
    codes = codec.encode(speech_like(0.5, 24000, rows=2))
    levels = codec.levels(codes)
    assert list(levels) == ["level_0", "level_1", "level_2"]
    assert torch.equal(codec.joined(levels), codes) and torch.equal(codec.joined(list(levels.values())), codes)
    codec.codebooks = 2
    assert codec.ratios == (1, 2) and torch.equal(codec.encode(speech_like(0.5, 24000, rows=2)), codes[:, :2, :12])
    assert codec.tokens_per_second == pytest.approx(24000 / 2048 * 3)
    assert codec.decode(codes[:, :2, :12]).shape == (2, 1, 6 * 2048)
    for wrong in ([], [levels["level_0"], levels["level_2"]], [levels["level_0"]] * 3):
        with pytest.raises(RequestError, match="levels of"):
            codec.joined(wrong)


@proves("snac", "mechanism")
@torch.no_grad()
def test_noise_is_shaped_by_the_signal_and_decided_by_the_seed():
    codec = narrow("snac-24khz")
    codes = codec.encode(speech_like(0.5, 24000)).expand(3, -1, -1)
    sound = codec.decode(codes, seeds=[0, 1, 1])
    check_wave(sound[1], sound[2])
    assert not torch.allclose(sound[0], sound[1], atol=1e-2)
    check_wave(codec.decode(codes[:1]), sound[:1])  # 0 unless given, and no other row
    check_wave(codec.decode(codes[:1], torch.tensor([12000]), seeds=[1]), sound[1:2, :, :12000])
    state, pieces = codec.decoder_state(3, seeds=[0, 1, 1]), []
    levels = codec.levels(codes)
    for frame in range(6):
        cut = {name: level[:, frame * r : frame * r + r] for (name, level), r in zip(levels.items(), codec.ratios)}
        piece, state = codec.decode_step(codec.joined(cut), state)
        pieces.append(piece[..., : int(state.emitted[0])])
    piece, _ = codec.decode_flush(state)
    check_wave(torch.cat([*pieces, piece], -1), sound)
    with pytest.raises(RequestError, match="2 seeds for 3 rows"):
        codec.decode(codes, seeds=[1, 2])
    codec.noise = False
    still = codec.decode(codes, seeds=[0, 1, 1])
    check_wave(still[0], still[1])
    assert not codec.noise and not torch.allclose(still, sound, atol=1e-2)
    assert build_snac({**NARROW["snac-24khz"], "noise": False}).noise is False


@proves("snac", "mechanism")
def test_kernels_of_seven_are_depthwise_and_windows_are_local(stacks):
    codec = narrow("snac-32khz")
    kernels = [part for part in codec.modules() if is_convolution(part) and part.kernel == 7 and part.stride == 1]
    assert [part.groups for part in kernels if part.groups != part.inputs] == [1]  # the last: to the waveform
    stack, config = stacks["short windows decoder"], SNACConfig.of(NARROW["short windows"])
    assert config.attn_window_size == 3 and stack.parts[3].window == 3
    x = torch.randn(1, 30, 64, dtype=torch.float64)
    other = x.clone()
    other[0, 13] += 1
    attention = stack.parts[3]
    with torch.no_grad():
        assert (attention(other) != attention(x)).any(2)[0].nonzero()[:, 0].tolist() == [12, 13, 14]


def test_exact_lengths():
    codec = narrow("snac-24khz")
    for samples in (1, 2047, 2048, 2049, 20000):
        assert codec.frames(samples) == -(-samples // 2048)
        assert codec.encode(torch.randn(1, 1, samples)).shape == (1, 3, 4 * codec.frames(samples))
    windowed = narrow("snac-32khz")
    assert [windowed.frames(samples) for samples in (0, 1, 12288, 12289)] == [0, 4, 4, 8]
    codes = codec.encode(torch.randn(2, 1, 5000))
    assert codec.decode(codes, torch.tensor([5000, 17])).shape == (2, 1, 5000)
    with pytest.raises(RequestError, match="6145 samples need 4 frames of codes, there are 3"):
        codec.decode(codes, torch.tensor([6145, 17]))


def test_saved_and_loaded(tmp_path):
    codec = narrow("short windows")
    save_codec(codec, tmp_path)
    assert (tmp_path / "codec.yaml").read_text().startswith("kind: snac\n")
    again = load_codec(tmp_path)
    wave = torch.randn(1, 1, 4000)
    assert torch.equal(again.encode(wave), codec.encode(wave)) and again.config == codec.config


@pytest.fixture
def directory(tmp_path):
    save_codec(narrow("snac-24khz"), tmp_path / "codec")
    sound = speech_like(0.7, 24000)[0].numpy()
    vivavoce.write(tmp_path / "in.wav", Audio(sound, 24000))
    return tmp_path


def run(*arguments) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return left.value.code


def test_through_the_commands(directory, capsys):
    codec, wav = directory / "codec", directory / "in.wav"
    assert run("encode", codec, wav, "-o", directory / "x.vvc", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["codebooks"], told["frames"], told["bytes"] < 400) == (3, 9, True)
    assert told["tokens_per_second"] == pytest.approx(82.03) and told["bits_per_second"] == pytest.approx(410.2)
    assert run("decode", codec, directory / "x.vvc", "-o", directory / "out.wav") == 0
    assert run("resynth", codec, wav, "-o", directory / "again.wav") == 0
    out, again = (vivavoce.read(directory / name) for name in ("out.wav", "again.wav"))
    assert len(out) == len(vivavoce.read(wav)) and np.array_equal(out.samples, again.samples)


def test_codes_of_another_rate_are_refused(directory, capsys):
    file = directory / "x.vvc"
    assert run("encode", directory / "codec", directory / "in.wav", "-o", file) == 0
    other = narrow("snac-24khz")
    options = {**NARROW["snac-24khz"], "vq_strides": [4, 1, 2]}
    turned = build_snac(options)
    turned.load_state_dict(other.state_dict())
    save_codec(turned, directory / "turned")
    assert run("decode", directory / "turned", file, "-o", directory / "out.wav") == 1
    assert "made by another tokenizer" in capsys.readouterr().err


def test_into_a_token_store(directory):
    codec = load_codec(directory / "codec")
    clip = Clip("one", "in.wav", 0.7, "CC0-1.0", "made", root=str(directory))
    assert spec_of(codec, "snac").ratios == (1, 2, 4)
    assert tokenize([clip], {"voice": codec}, directory / "store", quiet=True).rows == 1
    (row,) = TokenStore(directory / "store", {"voice": codec})
    expected = codec.levels(codec.encode(clip.load().tensor()))
    for mine, level in zip(row.streams["voice"][0], expected.values(), strict=True):
        assert np.array_equal(mine, level[0].numpy())


def test_options_come_back():
    for options in PUBLISHED_SNAC.values():
        config = SNACConfig.of(options)
        assert SNACConfig.of(config.options()) == config


def test_published_sizes():
    """19.8 and 54.5 million parameters; rates of the levels and bits a second as published."""
    expected = {"snac-24khz": (19.8, [12, 23, 47], 984), "snac-32khz": (54.5, [10, 21, 42, 83], 1875),
                "snac-44khz": (54.5, [14, 29, 57, 115], 2584)}  # fmt: skip
    for name, (millions, rates, bits) in expected.items():
        with torch.device("meta"):
            codec = codec_of({"kind": name})
        assert round(sum(parameter.numel() for parameter in codec.parameters()) / 1e6, 1) == millions
        assert [round(codec.frame_rate * ratio) for ratio in codec.ratios] == rates
        assert round(codec.bits_per_second) == bits


@pytest.mark.parametrize("change, message", [
    ({"filters": 3}, "'filters' is unknown"),
    ({"vq_strides": []}, "vq_strides"),
    ({"latent_dim": 5}, "latent_dim 5"),
    ({"encoder_dim": 6}, "heads of 64"),
    ({"quantizer": {"strides": [2, 1]}}, "vq_strides"),
    ({"quantizer": {"kind": "fsq"}}, "quantizer"),
])
def test_impossible_ones(change, message):
    with pytest.raises((RecipeError, RequestError), match=message):
        build_snac({**NARROW["snac-32khz"], **change})


def test_damaged_files_are_noticed(directory):
    file = directory / "x.vvc"
    assert run("encode", directory / "codec", directory / "in.wav", "-o", file) == 0
    codes, header = read_codes(file)
    assert codes.shape == (3, 36) and header.ratios == [1, 2, 4] and (codes[0, 9:] == -1).all()
    content = file.read_bytes()
    file.write_bytes(content.replace(b'"ratios": [1, 2, 4]', b'"ratios": [1, 2, 5]'))
    with pytest.raises(DataError, match="header cannot be read"):
        read_codes(file)
