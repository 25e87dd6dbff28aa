"""Codes coded by a language model: what goes in comes out in fewer bits; fine codes are drawn behind coarse ones."""

import numpy as np
import pytest
import torch

import vivavoce
from proves import proves
from small_codecs import SMALL
from vivavoce.audio import Audio, resample, write
from vivavoce.codecs import codec_of, load_codec, save_codec
from vivavoce.codecs.code_lm import CodeLM, CodeLMConfig
from vivavoce.errors import DataError, RecipeError
from vivavoce.tokenizers.blocks import Coded
from vivavoce.tokenizers.code_coder import CodeCoder, whole_shares
from vivavoce.tokenizers.compact_file import CodesHeader, CodesReader, CodesWriter, Damage, read_codes
from vivavoce.tokenizers.entropy import TOTAL
from vivavoce.training.code_lm_task import CodeLMTask

TINY = {"width": 16, "heads": 2, "layers": 1, "hidden": 24, "context": 40}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, speech_files):
    """A codec's directory, whose models of its codes, two of three levels sent, have learned from some speech; 3 s of
    other speech beside it; and the bits a second of that before and after the training."""
    place = tmp_path_factory.mktemp("coded")
    heard = torch.from_numpy(resample(vivavoce.read(speech_files[0]).samples[:, :160000], 16000, 8000))
    torch.manual_seed(0)
    codec = codec_of({**SMALL["causal"], "ratios": [8, 5, 4], "codebooks": 3, "entropy": {
        **TINY, "coarse": 2, "within": True}}).eval()  # fmt: skip
    codec.train()(heard[None, :, :16000])  # codebooks begin at what they hear
    codec.eval()
    task = CodeLMTask(codec, [heard[:, :48000]], held_out=[heard[:, 48000:72000]], seconds=1.0, batch=4)
    with torch.no_grad():
        codec.decoder.parts[-1].weight.mul_(3)  # codes are heard
        before = task.evaluate(0)
    optimizer = torch.optim.Adam(codec.entropy.parameters(), 1e-2)
    for step in range(40):
        for _, losses in task.updates(task.batch(step, 0, 1), step):
            optimizer.zero_grad()
            losses["loss"].backward()
            optimizer.step()
    save_codec(codec, place / "codec")
    write(place / "in.wav", Audio(heard[:, 48000:72000].numpy(), 8000))
    with torch.no_grad():
        return place, before, task.evaluate(0)


@proves("encodec", "mechanism")
@proves("lmcodec", "mechanism")
def test_a_trained_model_makes_speech_shorter(trained, command):
    """On speech that it has not learned from: than plain codes, than an untrained model, and as short as it says."""
    place, before, after = trained
    assert after["bits_per_second"] < 0.9 * before["bits_per_second"] and after["fine"] < 0.95 * before["fine"]
    sizes = {}
    for name, more in (("plain", ["--codebooks", "2"]), ("coded", ["--entropy"])):
        code, _, err = command("encode", place / "codec", place / "in.wav", "-o", place / f"{name}.vvc", *more)
        assert code == 0, err
        sizes[name] = (place / f"{name}.vvc").stat().st_size
    (plain, _), (coded, header) = (read_plain(place / f"{name}.vvc", place) for name in sizes)
    assert np.array_equal(plain, coded) and len(plain) == 2 and header.lm and header.sizes == [32, 32]
    payload = sum(len(b) for b in blocks_of((place / "coded.vvc").read_bytes()))
    assert sizes["coded"] < 0.9 * sizes["plain"]
    assert payload * 8 / 3 == pytest.approx(after["bits_per_second"], rel=0.1, abs=100)


def read_plain(path, place):
    reader = CodesReader(path)
    if reader.header.lm:
        reader.coder = CodeCoder(load_codec(place / "codec").entropy.sent, len(reader.header.sizes))
    found = list(reader)
    return np.concatenate([block.codes for block in found], axis=1), reader.header


def blocks_of(content):
    at, found = 12 + int.from_bytes(content[4:8], "little"), []
    while at < len(content):
        size = int.from_bytes(content[at + 8 : at + 12], "little")
        found.append(content[at + 16 : at + 16 + size])
        at += 16 + size
    return found


@proves("lmcodec", "mechanism")
def test_fine_codes_are_drawn_from_those_that_are_sent(trained, command):
    """A file has the coarse levels alone; the sound is made of all of them, always the same; coarse ones come back as
    they were, and a plain file of them sounds otherwise."""
    place, _, _ = trained
    assert command("encode", place / "codec", place / "in.wav", "-o", place / "a.vvc", "--entropy")[0] == 0
    for name in "bc":
        code, _, err = command("decode", place / "codec", place / "a.vvc", "-o", place / f"{name}.wav")
        assert code == 0, err
    sounds = [vivavoce.read(place / f"{name}.wav").samples for name in "bc"]
    codec = load_codec(place / "codec")
    codes = torch.from_numpy(read_plain(place / "a.vvc", place)[0])[None]
    coarse = codec.decode(codes, torch.tensor([24000]))[0].numpy()
    assert sounds[0].shape == coarse.shape and np.array_equal(*sounds)
    assert np.abs(sounds[0] - coarse).max() > 2e-4


def test_another_model_and_damage_are_noticed(trained, command, tmp_path):
    place, _, _ = trained
    model = load_codec(place / "codec").entropy.sent
    codes = [np.random.default_rng(level).integers(0, 32, 40) for level in range(2)]
    coder = CodeCoder(model, 2)
    content = coder.encode(codes)
    for found in (coder.decode(content, 40), CodeCoder(model, 2).decode(content, 40)):
        assert all(map(np.array_equal, found, codes))
    for level in range(1, 3):  # the first levels alone, and blocks that are short
        assert all(map(np.array_equal, CodeCoder(model, level).decode(CodeCoder(model, level).encode(
            [row[:1] for row in codes[:level]]), 1), [row[:1] for row in codes[:level]]))  # fmt: skip
    with torch.no_grad():
        model.linears[0].bias.add_(torch.linspace(0, 1e-3, 32))
    with pytest.raises(DataError, match=r"other chances|cannot have made"):
        CodeCoder(model, 2).decode(content, 40)
    for broken in (b"", content[:-1], bytes([content[0] ^ 1]) + content[1:]):
        with pytest.raises(DataError):
            coder.decode(broken, 40)
    path = tmp_path / "a.vvc"
    assert command("encode", place / "codec", place / "in.wav", "-o", path, "--entropy")[0] == 0
    with pytest.raises(DataError, match="language model"):
        read_codes(path)
    other = load_codec(place / "codec")
    with torch.no_grad():
        other.entropy.sent.linears[0].bias.add_(1e-3)
    save_codec(other, tmp_path / "other")
    code, _, err = command("decode", tmp_path / "other", path, "-o", tmp_path / "x.wav")
    assert code == 1 and "coded by the language model" in err


def test_blocks_stand_alone(trained, tmp_path):
    """Cut off, a file is read up to the cut; with a damaged block, all others are."""
    place, _, _ = trained
    codec = load_codec(place / "codec")
    coder = CodeCoder(codec.entropy.sent, 2)
    told = CodesHeader("some", "abc", 8000, 0, 0, [32, 32], lm=codec.entropy.digest())
    rng, path = np.random.default_rng(0), tmp_path / "a.vvc"
    blocks = [Coded(20, list(rng.integers(0, 32, (2, 20)))) for _ in range(4)]
    with path.open("wb") as file:
        writer = CodesWriter(file, told, coder)
        for block in blocks:
            writer.add(block)
        writer.finish(80 * 160)
    content = path.read_bytes()

    def read(changed):
        path.write_bytes(changed)
        damage = Damage()
        reader = CodesReader(path, damage)
        reader.coder = coder
        return list(reader), damage

    found, damage = read(content)
    assert not damage.found and not damage.cut
    assert all(np.array_equal(one.codes, other.codes) for one, other in zip(found, blocks, strict=True))
    found, damage = read(content[:-3])
    assert len(found) == 3 and "60 of 80 frames" in damage.cut
    broken = bytearray(content)
    broken[content.index(blocks_of(content)[1]) + 9] ^= 1
    found, damage = read(bytes(broken))
    assert len(damage.found) == 1 and "frames 20 to 39" in damage.found[0]
    assert all(np.array_equal(found[n].codes, blocks[n].codes) for n in (0, 2, 3))


def test_the_same_bytes_with_any_number_of_threads(trained):
    """And from a model in another dtype: float64 on one frame at a time, whatever is around it."""
    place, _, _ = trained
    model = load_codec(place / "codec").entropy.sent
    codes = [np.random.default_rng(level).integers(0, 32, 60) for level in range(2)]
    content = CodeCoder(model, 2).encode(codes)
    torch.set_num_threads(2)
    try:
        assert CodeCoder(model, 2).encode(codes) == content
        assert all(map(np.array_equal, CodeCoder(model, 2).decode(content, 60), codes))
    finally:
        torch.set_num_threads(1)


def test_shares_are_whole_numbers_of_all():
    rng = np.random.default_rng(0)
    for chances in (rng.dirichlet(np.ones(1024) * 0.01), np.eye(3)[0], np.full(16384, 1 / 16384)):
        shares = whole_shares(chances.astype(np.float64)) * TOTAL
        assert np.array_equal(shares, np.round(shares)) and shares.sum() == TOTAL and shares.min() >= 1


@proves("lmcodec", "mechanism")
@torch.no_grad()
def test_what_a_level_is_predicted_from():
    """Past frames, and of its own the levels below it: never itself, those above it, or what comes."""
    torch.manual_seed(0)
    for given, within in ((0, False), (0, True), (2, True)):
        model = CodeLM((16,) * 4, CodeLMConfig(**{**TINY, "context": 4}, within=within), given=given)
        codes = torch.randint(15, (1, 4, 8))
        plain = torch.stack(model(codes))[:, 0]
        assert len(plain) == 4 - given
        for place in (3, 5):
            for level in range(4):
                changed = codes.clone()
                changed[0, level, place] += 1
                moved = (torch.stack(model(changed))[:, 0] - plain).abs().amax(-1) > 1e-7  # [levels, frames]
                assert not moved[:, :place].any() and moved[:, place + 1].all()
                heard = [other > level and (within or level < given) for other in range(given, 4)]
                assert moved[:, place].tolist() == heard, (given, within, level)


def test_models_that_cannot_be_are_named():
    for entropy, said in (({"coarse": 3}, "coarse is 3"), ({"width": 15}, "even width"), ({"depth": 2}, "unknown")):
        with pytest.raises(RecipeError, match=said):
            codec_of({**SMALL["causal"], "entropy": entropy})
    with pytest.raises(RecipeError, match="differ in rate"):
        codec_of({**SMALL["snac"], "entropy": {}})
    with pytest.raises(RecipeError, match="no model of its codes"):
        CodeLMTask(codec_of(SMALL["causal"]), [torch.zeros(1, 800)])
