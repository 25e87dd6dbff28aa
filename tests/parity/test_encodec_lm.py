"""EnCodec's language model of its codes, and its `.ecdc` files, against the package, on random weights."""

import io
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from codec_parity import speech_like, spread_residual
from peers import peer
from proves import proves
from vivavoce.audio import Audio, read, write
from vivavoce.codecs import codec_of, save_codec
from vivavoce.codecs.code_lm import CodeLM, CodeLMConfig, code_models
from vivavoce.codecs.seanet_weights import fill
from vivavoce.tokenizers import load_tokenizer

encodec = peer("encodec")
compress = sys.modules["encodec.compress"]  # the package has a function of this name
SMALL = {"width": 32, "heads": 4, "layers": 2, "hidden": 128, "context": 20}


def their_lm(levels=4, size=64):
    torch.manual_seed(0)
    lm = encodec.model.LMModel(levels, size, dim=32, num_heads=4, num_layers=2, past_context=20).eval()
    for name, parameter in lm.named_parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name and "weight" in name else 0.0, 0.3)
    for head in lm.linears:
        head.weight.data *= 4  # some codes are likely
    return lm


@proves("encodec", "weights")
@torch.no_grad()
def test_the_same_chances_as_the_package():
    """Whole and frame by frame, longer than its past: the very same floats one by one, near ones by keys and values."""
    theirs = their_lm()
    ours = CodeLM((64,) * 4, CodeLMConfig(**SMALL)).eval()
    ours.load_state_dict(theirs.state_dict())
    codes = torch.randint(64, (2, 4, 50))
    expected, _, _ = theirs(F.pad(codes[..., :-1] + 1, (1, 0)))
    found = torch.stack([logits.softmax(-1) for logits in ours(codes)], 1)
    torch.testing.assert_close(found, expected.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-7)
    states, past, quick = None, None, ours.begin()
    before = torch.zeros(1, 4, 1, dtype=torch.int64)
    for place in range(50):
        chances, states, _ = theirs(before, states, place)
        hidden, past = ours.hidden(before, past, place)
        logits = torch.stack([head(hidden) for head in ours.linears], dim=1).permute(0, 3, 1, 2)
        assert torch.equal(logits.softmax(1), chances)
        near, quick = ours.step(before, quick, place)
        torch.testing.assert_close(near, hidden, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(chances[0, ..., 0], found[0, :, place].T, rtol=1e-4, atol=1e-6)
        before = 1 + codes[:1, :, place : place + 1]


@pytest.fixture(params=["24 kHz", "48 kHz"])
@torch.no_grad()
def both(request, tmp_path, monkeypatch):
    """A small model of the package that its `compress` takes for the published one, ours of the same weights in a
    directory, and a recording."""
    chunked = request.param == "48 kHz"
    rate, channels = (48000, 2) if chunked else (24000, 1)
    form = {"norm": "time_group_norm" if chunked else "weight_norm", "causal": not chunked, "channels": channels}
    torch.manual_seed(1)
    stacks = [kind(n_filters=4, dimension=32, **form).eval() for kind in (
        encodec.modules.SEANetEncoder, encodec.modules.SEANetDecoder)]  # fmt: skip
    books = encodec.quantization.ResidualVectorQuantizer(dimension=32, n_q=4, bins=64)
    segment = {"segment": 0.1, "normalize": True} if chunked else {}
    theirs = encodec.EncodecModel(
        *stacks, books, [24.0], rate, channels, name=f"encodec_{rate // 1000}khz", **segment
    ).eval()
    theirs.bandwidth = None
    wave = speech_like(0.25, rate, rows=channels)[:, 0]
    latents = theirs.encoder(wave[None]).transpose(1, 2).flatten(0, 1)
    spread_residual(latents, [layer._codebook.embed for layer in books.vq.layers])
    for layer in books.vq.layers:
        layer._codebook.inited.fill_(1)
    lm = their_lm()
    theirs.get_lm_model = lambda: lm
    monkeypatch.setattr(compress, "MODELS", {theirs.name: lambda: theirs})
    chunks = {"chunk": 4800, "stride": 4752} if chunked else {}
    codec = codec_of({
        "kind": f"encodec-{rate // 1000}khz", "filters": 4, "dim": 32, "codebooks": 4, "codebook_size": 64,
        "use_codebooks": 4, "quantizer": {"dropout_levels": None}, **chunks,
    }).eval()  # fmt: skip
    fill(codec, theirs.state_dict(), "original", "the package's model")
    codec.entropy = code_models(codec, SMALL).eval()
    codec.entropy.sent.load_state_dict(lm.state_dict())
    save_codec(codec, tmp_path / "codec")
    write(tmp_path / "in.wav", Audio(wave.numpy().clip(-1, 1), rate))
    return theirs, tmp_path, torch.from_numpy(read(tmp_path / "in.wav").samples)


@proves("encodec", "mechanism")
@pytest.mark.parametrize("entropy", [False, True], ids=["plain", "lm"])
def test_files_of_the_package_both_ways(both, entropy, command):
    """The same bytes are written; each reads the other's; a cut file is read up to the cut."""
    theirs, place, wave = both
    written = compress.compress(theirs, wave, use_lm=entropy)
    (place / "theirs.ecdc").write_bytes(written)
    said = ["--entropy"] if entropy else []
    code, _, err = command("encode", place / "codec", place / "in.wav", "-o", place / "ours.ecdc", *said)
    assert code == 0, err
    assert (place / "ours.ecdc").read_bytes() == written
    expected, rate = compress.decompress_from_file(io.BytesIO(written))
    code, _, err = command("decode", place / "codec", place / "theirs.ecdc", "-o", place / "out.wav")
    assert code == 0 and not err
    found = read(place / "out.wav")
    assert found.sample_rate == rate and found.samples.shape == wave.shape
    assert np.abs(found.samples - expected.clamp(-1, 1).numpy()).max() < 1e-3 and found.samples.std() > 1e-3
    (place / "cut.ecdc").write_bytes(written[: len(written) * 3 // 4])
    code, _, err = command("decode", place / "codec", place / "cut.ecdc", "-o", place / "cut.wav")
    assert code == 0 and "cut short" in err and 0 < len(read(place / "cut.wav")) < len(found)
    for content, told in ((b"EC", "no .ecdc file"), (written[:20], "cut"), (b"ECDC\x01" + written[5:], "version 1")):
        (place / "x.ecdc").write_bytes(content)
        code, _, err = command("decode", place / "codec", place / "x.ecdc", "-o", place / "x.wav")
        assert code == 1 and told in err, err


@proves("encodec", "weights")
def test_the_package_s_file_of_the_language_model(both):
    theirs, place, _ = both
    (place / "codec" / "codec.yaml").write_text(
        "\n".join(line for line in (place / "codec" / "codec.yaml").read_text().split("entropy:")[0].splitlines())
        + "\nuse_codebooks: 4\n"
    )
    tensors = load_file(place / "codec" / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if not n.startswith("entropy.")}, place / "codec" / "model.safetensors")
    torch.save(theirs.get_lm_model().state_dict(), place / "codec" / "encodec_lm_24khz-0.th")
    plain = load_tokenizer(place / "codec")
    codec = load_tokenizer(place / "codec", allow_pickle=True)
    assert not hasattr(plain, "entropy") and codec.entropy.config.context == 262 * (codec.sample_rate // 24000) + (
        codec.sample_rate == 48000)  # fmt: skip
    for name, value in theirs.get_lm_model().state_dict().items():
        assert torch.equal(codec.entropy.sent.state_dict()[name], value)
