"""Encoders over spectra: BEATs' published files, BYOL-A's convolutions and ECAPA-TDNN, against the copies that
SpeechBrain and S3PRL have of the authors' models, with the same weights."""

import importlib
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from codec_parity import speech_like
from peers import peer, peer_path
from proves import proves
from ssl_models import agree
from vivavoce.audio.kaldi import kaldi_fbank
from vivavoce.encoders.registry import build_encoder
from vivavoce.errors import CheckpointError, RecipeError

SIZES = {
    "input_patch_size": 16, "embed_dim": 12, "conv_bias": False, "encoder_layers": 2, "encoder_embed_dim": 24,
    "encoder_ffn_embed_dim": 32, "encoder_attention_heads": 2, "activation_fn": "gelu", "layer_norm_first": False,
    "deep_norm": True, "conv_pos": 8, "conv_pos_groups": 2, "relative_position_embedding": True, "num_buckets": 20,
    "max_distance": 40, "gru_rel_pos": True, "finetuned_model": False,
}  # fmt: skip


def stirred(model):
    """Every weight away from its first value, gains of norms and running statistics too."""
    chance = torch.Generator().manual_seed(0)
    for parameter in model.eval().parameters():
        parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=chance))
    for name, buffer in model.named_buffers():
        if "running_" in name:
            buffer.add_(0.3 * torch.rand(buffer.shape, generator=chance))
    return model


def layers(model, wave):
    """What SpeechBrain's BEATs gives of a signal [1, samples], the input of the first block first: [layers, T, D]."""
    return model(wave, torch.ones(1))[0][:, :, 0]


@pytest.fixture(scope="module")
def speechbrain():
    """What imports modules of SpeechBrain without the whole of it; the filter bank they ask torchaudio for is ours."""
    package = ModuleType("speechbrain")
    package.__path__ = [peer_path("speechbrain")]
    kaldi = ModuleType("torchaudio.compliance.kaldi")
    kaldi.fbank = lambda wave, num_mel_bins, **_: kaldi_fbank(wave, 16000, num_mel_bins, scale=1.0)[0]
    compliance = ModuleType("torchaudio.compliance")
    compliance.kaldi = kaldi
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "speechbrain", package)
        patch.setitem(sys.modules, "torchaudio.compliance", compliance)
        patch.setitem(sys.modules, "torchaudio.compliance.kaldi", kaldi)
        yield importlib.import_module
        for name in set(sys.modules) - before:
            if name.startswith("speechbrain."):
                del sys.modules[name]


@pytest.fixture(scope="module")
def beats(speechbrain, tmp_path_factory):
    """SpeechBrain's BEATs, and its file."""
    module = speechbrain("speechbrain.lobes.models.beats")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BEATsConfig", lambda cfg=None, plain=module.BEATsConfig: plain(SIZES))
        torch.manual_seed(0)
        model = stirred(module.BEATs(freeze=True, output_all_hiddens=True))
    file = tmp_path_factory.mktemp("beats") / "BEATs_iter3.pt"
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    named = dict(model.state_dict())
    for part, theirs in old.items():  # as torch named them when the files were written
        named[f"encoder.pos_conv.0.{theirs}"] = named.pop(f"encoder.pos_conv.0.{part}")
    torch.save({"cfg": SIZES, "model": named}, file)
    return SimpleNamespace(model=model, file=file)


@proves("beats", "weights")
@torch.no_grad()
def test_a_published_beats_gives_the_authors_patches(beats):
    """Every layer of a signal, and of a shorter one beside it in a batch, as of the signal alone."""
    ours = build_encoder({"kind": "beats", "source": str(beats.file), "allow_pickle": True})
    wave = speech_like(0.9, 16000)[:, 0]
    for some in (wave, wave[:, :9000]):
        agree(ours.features(some[:, None], layer="all").values[0], layers(beats.model, some))
    lengths = torch.tensor([wave.shape[1], 9000])
    both = ours.features(torch.cat([wave, wave])[:, None], lengths)
    assert both.lengths.tolist() == [5 * 8, 3 * 8]
    agree(both.values[1:, :24], layers(beats.model, wave[:, :9000])[-1:])
    again = build_encoder({"kind": "beats", **ours.sizes()})
    assert again.config == ours.config and again.tokenizer is None


@proves("beats", "weights")
@torch.no_grad()
def test_a_published_tokenizer_gives_the_codes_nearest_in_direction(beats, tmp_path):
    torch.manual_seed(1)
    named = dict(beats.model.state_dict())
    maps = torch.nn.Sequential(torch.nn.Linear(24, 24), torch.nn.Tanh(), torch.nn.Linear(24, 6))
    entries = F.normalize(torch.randn(10, 6), dim=-1)
    named |= {f"quantize_layer.{name}": value for name, value in maps.state_dict().items()}
    named |= {"quantize.embedding.weight": entries, "quantize.embedding.initted": torch.ones(1),
              "quantize.embedding.cluster_size": torch.zeros(10), "quantize.embedding.embed_avg": entries.clone(),
              "quantize.cluster_size": torch.zeros(10)}  # fmt: skip
    torch.save({"cfg": {**SIZES, "quant_n": 10, "quant_dim": 6}, "model": named}, tmp_path / "Tokenizer_iter3.pt")
    ours = build_encoder({"kind": "beats", "source": str(tmp_path), "allow_pickle": True})
    wave = speech_like(0.9, 16000)[:, 0]
    points = F.normalize(maps(layers(beats.model, wave)[-1:]), dim=-1)
    codes = torch.cdist(points, entries[None]).argmin(-1)
    found = ours.codes(*ours.local(wave, torch.tensor([wave.shape[1]])))
    assert torch.equal(found, codes) and len(codes.unique()) > 2
    with pytest.raises(RecipeError, match="no tokenizer"):
        build_encoder({"kind": "beats", "source": str(beats.file), "allow_pickle": True}).codes(points, torch.ones(1))


def test_files_that_are_no_beats_are_refused(beats, tmp_path):
    source = {"kind": "beats", "source": str(beats.file)}
    with pytest.raises(CheckpointError, match="allow_pickle=True"):
        build_encoder(source)
    saved = torch.load(beats.file, weights_only=True)
    for wrong, message in (
        ({"weights": saved["model"]}, "'cfg' and 'model'"),
        ({**saved, "cfg": {**SIZES, "layer_norm_first": True}}, "layer_norm_first=True is not supported"),
        ({**saved, "cfg": {k: v for k, v in SIZES.items() if k != "conv_pos"}}, "lacks conv_pos"),
        ({**saved, "cfg": {**SIZES, "encoder_ffn_embed_dim": 40}}, "the config says"),
        ({**saved, "model": {k: v for k, v in saved["model"].items() if "fc1" not in k}}, "missing"),
    ):
        torch.save(wrong, tmp_path / "wrong.pt")
        with pytest.raises(CheckpointError, match=message):
            build_encoder({"kind": "beats", "source": str(tmp_path / "wrong.pt"), "allow_pickle": True})


@proves("byol-a", "mechanism")
@torch.no_grad()
def test_byol_as_convolutions_and_perceptron_are_the_authors():
    """The first version's network, which is in ours: there its perceptron alone is the output."""
    theirs = stirred(peer("s3prl.upstream.byol_a.byol_a").AudioNTT2020(n_mels=16, d=20))
    ours = build_encoder({"kind": "mel_cnn", "mels": 16, "convolutions": 3, "hidden": 20, "width": 128 + 20})
    named = {}
    for number, (conv, norm) in enumerate(((0, 1), (4, 5), (8, 9))):
        kernel = {"weight": theirs.features[conv].weight.transpose(2, 3), "bias": theirs.features[conv].bias}
        named |= {f"convolutions.{number}.{k}": v for k, v in kernel.items()}  # theirs hear bands first, then time
        named |= {f"norms.{number}.{k}": v for k, v in theirs.features[norm].state_dict().items()}
    for mine, other in (("widen", 0), ("narrow", 3)):
        named |= {f"{mine}.{k}": v for k, v in theirs.fc[other].state_dict().items()}
    ours.load_state_dict(named)
    wave, lengths = speech_like(0.8, 16000)[:, 0], torch.tensor([12800])
    counts = ours.frames(lengths)
    mel = ours.spectrum(wave, counts)
    found = ours.summary(ours.cut(mel), counts)
    torch.testing.assert_close(found[:, 128:], theirs(mel.transpose(1, 2)[:, None]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, ours.utterances(wave, lengths))


@proves("dino-utterance", "mechanism")
@torch.no_grad()
def test_utterances_have_ecapas_vectors(speechbrain):
    """SpeechBrain's, whose convolutions reflect at the ends, here told to hear nothing there as the paper's do."""
    theirs = speechbrain("speechbrain.lobes.models.ECAPA_TDNN").ECAPA_TDNN(
        20, lin_neurons=10, channels=[16, 16, 16, 16, 24], attention_channels=8, res2net_scale=4, se_channels=8
    )
    for module in stirred(theirs).modules():
        if isinstance(module, torch.nn.Conv1d) or hasattr(module, "padding_mode"):
            module.padding_mode = "constant"
    ours = build_encoder({"kind": "ecapa", "width": 24, "channels": 16, "embedding": 10, "mels": 20, "groups": 4,
                          "attention": 8, "squeeze": 8})  # fmt: skip
    pieces = {"first": "blocks.0", "joint": "mfa", "attend": "asp.tdnn", "weigh": "asp.conv", "norm": "asp_bn",
              "last": "fc"}  # fmt: skip
    for number in range(3):
        inside = {"enter": "tdnn1", "leave": "tdnn2", "squeeze": "se_block.conv1", "excite": "se_block.conv2"}
        inside |= {f"parts.{part}": f"res2net_block.blocks.{part}" for part in range(3)}
        pieces |= {f"blocks.{number}.{mine}": f"blocks.{number + 1}.{other}" for mine, other in inside.items()}
    for mine, other in pieces.items():
        part = ours.body.get_submodule(mine)
        shaped = zip(part.state_dict().items(), theirs.get_submodule(other).state_dict().values(), strict=True)
        part.load_state_dict({name: value.reshape(own.shape) for (name, own), value in shaped})
    wave, lengths = speech_like(0.8, 16000)[:, 0], torch.tensor([12800])
    mel = ours.spectrum(wave, ours.frames(lengths))
    assert mel.mean(1).abs().max() < 1e-4
    torch.testing.assert_close(ours.utterances(wave, lengths), theirs(mel)[:, 0], rtol=1e-3, atol=1e-4)
    both = ours.utterances(torch.cat([wave, torch.zeros_like(wave)]), torch.tensor([12800, 0]))
    torch.testing.assert_close(both[:1], ours.utterances(wave, lengths))
    assert both.isfinite().all(), "a row without frames has a vector too"
