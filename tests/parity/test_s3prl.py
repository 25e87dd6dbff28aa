"""APC, VQ-APC, TERA, DeCoAR 2.0, CPC, the first wav2vec and MR-HuBERT: files in the published formats give what S3PRL's
copies of the authors' models have with the same weights."""

import argparse
import dataclasses
import json

import kaldi_native_fbank
import numpy as np
import pytest
import torch

from peers import peer
from proves import proves
from ssl_models import agree
from vivavoce.encoders.registry import build_encoder
from vivavoce.errors import CheckpointError, RequestError

apc = peer("s3prl.upstream.apc.apc")
cpc = peer("s3prl.upstream.cpc.model")
decoar2 = peer("s3prl.upstream.decoar2.decoar2")
mockingjay = peer("s3prl.upstream.mockingjay.model")
wav2vec = peer("s3prl.upstream.wav2vec.wav2vec_model")
multires = peer("s3prl.upstream.multires_hubert.hubert_model")
WAVES = [16_000, 5_001, 465]


def loaded(kind, source):
    return build_encoder({"kind": kind, "source": str(source), "allow_pickle": True})


def stirred(model):
    """Every weight away from its first value, gains of norms too."""
    for parameter in model.eval().parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    return model


def kaldi_frames(wave, taper):
    """Mel frames [1, T, 20] of a waveform by Kaldi's own code, each band normalised as S3PRL does."""
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither, options.frame_opts.window_type, options.mel_opts.num_bins = 0.0, taper, 20
    computer = kaldi_native_fbank.OnlineFbank(options)
    computer.accept_waveform(16000, wave.tolist())
    computer.input_finished()
    frames = torch.from_numpy(np.stack([computer.get_frame(i) for i in range(computer.num_frames_ready)]))
    return ((frames - frames.mean(0)) / (1e-10 + frames.std(0)))[None]


@proves("apc", "weights")
@pytest.mark.parametrize("codes", [False, True])
@torch.no_grad()
def test_apc(codes, tmp_path):
    vq = {"codebook_size": [9], "code_dim": [24], "gumbel_temperature": 0.5} if codes else None
    sizes = {"hidden_size": 24, "num_layers": 3, "dropout": 0.1, "residual": True, "vq": vq}
    theirs = stirred(apc.APC(20, **sizes))
    audio = {"feat_type": "fbank", "feat_dim": 20, "frame_length": 25, "frame_shift": 10, "decode_wav": False}
    config = {"data": {"audio": audio}, "model": {"paras": sizes}}
    torch.save({"config": config, "model": theirs.state_dict()}, tmp_path / "apc.ckpt")
    encoder = loaded("mel_recurrent", tmp_path / "apc.ckpt")
    waves = [0.1 * torch.randn(length) for length in (16_000, 5_001)]
    found = encoder.features(waves, layer="all")
    for row, wave in enumerate(waves):
        frames = kaldi_frames(wave, "hamming")
        last = theirs(frames, [frames.shape[1]], True)[1]
        layers = torch.cat([torch.nn.functional.pad(frames, (0, 4)), last])
        agree(found.values[row, [0, 3], : frames.shape[1]], layers, 2e-3)


@proves("tera", "weights")
@torch.no_grad()
def test_tera(tmp_path):
    sizes = {
        "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "hidden_act": "gelu",
        "intermediate_size": 36, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02, "layer_norm_eps": 1e-12, "share_layer": False, "pre_layer_norm": False,
    }  # fmt: skip
    theirs = stirred(mockingjay.TransformerModel(mockingjay.TransformerConfig(sizes), 20))
    fbank = {"frame_length": 25.0, "frame_shift": 10.0, "num_mel_bins": 20, "use_log_fbank": True}
    audio = {"kaldi": {"feat_type": "fbank", "fbank": fbank}, "delta": {"order": 0}, "cmvn": {"use_cmvn": True}}
    state = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): value for name, value in theirs.state_dict().items()}
    torch.save({"Config": {"transformer": sizes, "audio": audio}, "Transformer": state}, tmp_path / "tera.ckpt")
    encoder = loaded("mel_transformer", tmp_path / "tera.ckpt")
    waves = [0.1 * torch.randn(length) for length in (16_000, 5_001)]
    found = encoder.features(waves, layer="all")
    for row, wave in enumerate(waves):
        frames = kaldi_frames(wave, "povey")
        places = torch.arange(frames.shape[1])[:, None] / 10000 ** (torch.arange(0, 24, 2) / 24)
        table = torch.stack([places.sin(), places.cos()], dim=-1).flatten(1)  # S3PRL's get_sinusoid_table
        layers = theirs(frames, table[None], torch.ones(1, frames.shape[1]))
        agree(found.values[row, :, : frames.shape[1]], torch.cat(layers), 2e-3)


@proves("decoar2", "weights")
@torch.no_grad()
def test_decoar2(tmp_path, monkeypatch):
    sizes = {"input_feat": 20, "encoder_embed_dim": 128, "encoder_layers": 2, "encoder_ffn_embed_dim": 40,
             "encoder_attention_heads": 2, "conv_pos": 16, "conv_pos_groups": 4}  # fmt: skip
    monkeypatch.setattr(decoar2, "args", {**decoar2.args, **sizes})
    theirs = stirred(decoar2.Decoar2())
    state = {**theirs.state_dict(), "vector_quantizer.vars": torch.zeros(1)}
    torch.save({"model": state}, tmp_path / "checkpoint_decoar2.pt")
    encoder = loaded("decoar2", tmp_path / "checkpoint_decoar2.pt")
    waves = [0.1 * torch.randn(length) for length in (16_000, 5_001)]
    found = encoder.features(waves, layer="all")
    for row, wave in enumerate(waves):
        frames = kaldi_frames(wave, "hamming")[:, ::2]
        last, layers = theirs(frames)
        assert found.lengths[row] == frames.shape[1] == encoder.frames(len(wave))
        wanted = torch.cat([*(layer[0].transpose(0, 1) for layer in layers), last])
        agree(found.values[row, [1, 2, 2], : frames.shape[1]], wanted, 2e-3)


def cpc_model(body="LSTM", layers=3, width=24):
    model = stirred(cpc.CPCModel(cpc.CPCEncoder(width), cpc.CPCAR(width, width, False, layers, body)))
    for parameter in model.gAR.parameters():
        parameter.data.mul_(2)  # so that what is heard still makes a difference three layers later
    return model


def saved_cpc(model, folder, s3prl, **settings):
    """The model as a file of S3PRL's, or the newest of a folder of CPC_audio's."""
    settings = {"hiddenEncoder": 24, "hiddenGar": 24, "nLevelsGRU": 3, **settings}
    if s3prl:
        torch.save({"config": settings, "weights": model.state_dict()}, folder / "cpc.ckpt")
        return folder / "cpc.ckpt"
    zeros = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    torch.save({"gEncoder": zeros}, folder / "checkpoint_5.pt")
    torch.save({"gEncoder": model.state_dict(), "best": {}}, folder / "checkpoint_30.pt")
    (folder / "checkpoint_args.json").write_text(json.dumps(settings))
    return folder


@proves("cpc", "weights")
@pytest.mark.parametrize("s3prl", [True, False])
@pytest.mark.parametrize("body", ["LSTM", "GRU"])
@torch.no_grad()
def test_cpc(body, s3prl, tmp_path):
    theirs = cpc_model(body)
    encoder = loaded("cpc", saved_cpc(theirs, tmp_path, s3prl, arMode=body))
    waves = [0.3 * torch.randn(length) for length in WAVES]
    found = encoder.features(waves, layer="all")
    for row, wave in enumerate(waves):
        last, local, _ = theirs(wave[None, None], None)
        count = int(found.lengths[row])
        assert count == local.shape[1] == encoder.frames(len(wave))
        agree(found.values[row, [0, 3], :count], torch.cat([local, last]))
    lower = cpc_model(body, layers=2)  # ZeroSpeech takes the second layer of four
    lower.load_state_dict(theirs.state_dict(), strict=False)
    agree(encoder.features(waves[:1], layer=2).values, lower(waves[0][None, None], None)[0])
    assert found.lengths[0] == 100


@proves("wav2vec", "weights")
@pytest.mark.parametrize("large", [True, False])
@torch.no_grad()
def test_wav2vec(large, tmp_path):
    front = "[(24, 10, 5), (24, 8, 4)] + [(24, 4, 2)] * 3" + (" + [(24, 1, 1)]" if large else "")
    settings = {
        "conv_feature_layers": front, "conv_aggregator_layers": "[(24, 2, 1), (24, 3, 1), (24, 4, 1)]",
        "skip_connections_agg": large, "log_compression": large, "agg_zero_pad": not large, "offset": "auto",
    }  # fmt: skip
    theirs = stirred(wav2vec.Wav2VecModel(wav2vec.Wav2VecConfig(infonce=False, **settings)))
    state = theirs.state_dict()
    if large:
        torch.save({"args": argparse.Namespace(**settings), "model": state}, tmp_path / "wav2vec.pt")
    else:
        full = dataclasses.asdict(theirs.cfg) if hasattr(theirs, "cfg") else settings
        torch.save({"task_cfg": {}, "model_cfg": full, "model_weight": state}, tmp_path / "wav2vec.pt")
    encoder = loaded("wav2vec", tmp_path / "wav2vec.pt")
    waves = [0.3 * torch.randn(length) for length in WAVES]
    found = encoder.features(waves, layer="all")
    for row, wave in enumerate(waves):
        local = theirs.feature_extractor(wave[None])
        last = theirs.feature_aggregator(local)
        count = int(found.lengths[row])
        assert count == local.shape[2] == encoder.frames(len(wave))
        agree(found.values[row, [0, 3], :count], torch.cat([local, last]).mT)


TWO_RATES = {
    "label_rate": 50, "label_rate_ratios": [1, 2], "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 48,
    "encoder_attention_heads": 4, "conv_feature_layers": "[(24, 10, 5)] + [(24, 8, 8)] * 2", "conv_pos": 16,
    "conv_pos_groups": 4, "required_seq_len_multiple": 1,
}  # fmt: skip
FORMS = {
    "base": {"override_encoder_layers": "[2, 1, 2]"},
    "large": {"encoder_layers": "1", "layer_norm_first": True, "extractor_mode": "layer_norm", "conv_bias": True},
    "plain": {"encoder_layers": "1", "use_plain_updownsample": True, "conv_adapator_kernal": 3},
}


def mr_hubert(settings):
    """Its model of S3PRL, and all settings."""
    config = multires.MultiresHubertConfig(**TWO_RATES | settings)
    config.encoder_layers = int(config.encoder_layers)
    model = multires.MultiresHubertModel(config, multires.MultiresHubertPretrainingConfig(), [range(9), range(9)])
    return stirred(model), dataclasses.asdict(config)


@proves("mr-hubert", "weights")
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_mr_hubert(form, tmp_path):
    torch.manual_seed(2)
    theirs, settings = mr_hubert(FORMS[form])
    tree = {"task_cfg": {"normalize": False}, "model_cfg": settings, "model_weight": theirs.state_dict()}
    torch.save({**tree, "dictionaries_symbols": [["a"]]}, tmp_path / "two.pt")
    encoder = loaded("mr_hubert", tmp_path / "two.pt")
    waves = [0.3 * torch.randn(length) for length in (16_000, 9_960, 2_000)]
    found, every = encoder.features(waves), encoder.features(waves, layer="all").values
    blocks = [*theirs.encoders[0].layers, *theirs.middle_encoder.layers, *theirs.decoders[0].layers]
    outputs = []
    for block in blocks:
        block.register_forward_hook(lambda module, given, out: outputs.append(out[0].transpose(0, 1)))
    for row, wave in enumerate(waves):
        outputs.clear()
        whole = torch.zeros(1, len(wave), dtype=torch.bool)
        half, fast = theirs.extract_features(wave[None], padding_mask=whole)[0]
        count = int(found.lengths[row])
        assert count == fast.shape[1] and half.shape[1] == (count + 1) // 2
        agree(found.values[row : row + 1, :count], fast)
        for mine, other in zip(every[row, 1:], outputs, strict=True):
            slow = len(other[0]) == (count + 1) // 2
            agree(mine[None, :count:2] if slow else mine[None, :count], other[:, :count])


def test_published_sizes_have_the_reference_s_names_and_shapes(tmp_path):
    def empty(model):
        """Its weights as zeros that take no place."""
        return {name: torch.zeros(()).expand(value.shape) for name, value in model.state_dict().items()}

    settings = {"skip_connections_agg": True, "log_compression": True,
                "conv_feature_layers": "[(512, 10, 5), (512, 8, 4)] + [(512, 4, 2)] * 3 + [(512, 1, 1)] * 2",
                "conv_aggregator_layers": str([(512, kernel, 1) for kernel in range(2, 14)])}  # fmt: skip
    config = multires.MultiresHubertConfig(encoder_layers=4, label_rate=50)
    with torch.device("meta"):
        big = cpc.CPCModel(cpc.CPCEncoder(512), cpc.CPCAR(512, 512, False, 4, "LSTM"))
        large = wav2vec.Wav2VecModel(wav2vec.Wav2VecConfig(infonce=False, **settings))
        base = multires.MultiresHubertModel(config, multires.MultiresHubertPretrainingConfig(), [range(500)] * 2)
    sizes = {"hiddenEncoder": 512, "hiddenGar": 512, "nLevelsGRU": 4}
    torch.save({"config": sizes, "weights": empty(big)}, tmp_path / "cpc")
    torch.save({"args": argparse.Namespace(**settings), "model": empty(large)}, tmp_path / "wav2vec")
    sizes = {**dataclasses.asdict(config), "encoder_layers": "4"}
    torch.save({"model_cfg": sizes, "model_weight": empty(base)}, tmp_path / "mr_hubert")
    for kind, options in {"cpc": {"conv_widths": [512] * 5, "layers": 4}, "wav2vec": {}, "mr_hubert": {}}.items():
        found = loaded(kind, tmp_path / kind)
        with torch.device("meta"):
            assert found.config == build_encoder({"kind": kind, **options}).config


def test_what_does_not_fit_is_told(tmp_path):
    def refused(kind, path, error, message):
        with pytest.raises(error, match=message):
            loaded(kind, path)

    model = cpc_model()
    refused("cpc", tmp_path / "nothing.pt", RequestError, "no file")
    with pytest.raises(CheckpointError, match="a pickle, which is not read unasked"):
        build_encoder({"kind": "cpc", "source": str(saved_cpc(model, tmp_path, True))})
    refused("cpc", tmp_path, RequestError, "no file")
    for kind, name in {"mel_recurrent": "APC", "mel_transformer": "TERA", "decoar2": "DeCoAR 2.0"}.items():
        refused(kind, saved_cpc(model, tmp_path, True), CheckpointError, f"no checkpoint of {name}")
    refused("cpc", saved_cpc(model, tmp_path, True, arMode="transformer"), CheckpointError, "only GRU and LSTM")
    refused("cpc", saved_cpc(model, tmp_path, True, hiddenGar=32), CheckpointError, "hiddenGar 32 differs")
    refused("cpc", saved_cpc(model, tmp_path, True, nLevelsGRU=2), CheckpointError, "unknown")
    refused("wav2vec", saved_cpc(model, tmp_path, True), CheckpointError, "no checkpoint of wav2vec")
    refused("mr_hubert", saved_cpc(model, tmp_path, True), CheckpointError, "no checkpoint of MR-HuBERT")
    settings = {**mr_hubert(FORMS["base"])[1], "label_rate_ratios": [1, 2, 1, 2]}
    torch.save({"model_cfg": settings, "model_weight": {}}, tmp_path / "three.pt")
    refused("mr_hubert", tmp_path / "three.pt", CheckpointError, r"label_rate_ratios=\[1, 2, 1, 2\] is not supported")
    for settings, message in {
        "aggregator='gru'": ("aggregator", "gru"), "no convolutions": ("conv_feature_layers", "exit()"),
        "another width": ("conv_aggregator_layers", "[(256, 3, 1)]"),
        "no convolution at all": ("conv_feature_layers", "[]"), "unknown": ("dropout", 0.1),
    }.items():  # fmt: skip
        args = argparse.Namespace(**{message[0]: message[1]})
        torch.save({"args": args, "model": {"feature_extractor.a": torch.zeros(1)}}, tmp_path / "other.pt")
        refused("wav2vec", tmp_path / "other.pt", CheckpointError, settings)
