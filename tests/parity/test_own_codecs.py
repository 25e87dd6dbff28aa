"""Codecs in their authors' own files: SpeechTokenizer's, BigCodec's and WavTokenizer's by packages; FocalCodec's by the
names and structure of its repository, in plain torch and by what it is made of (vocos, transformers' WavLM)."""

import importlib
import json
import sys

import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import save_file
from torch import nn

from codec_parity import check_codes, check_variety, check_wave, speech_like, spread_residual
from peers import bare, peer
from proves import proves
from vivavoce.codecs import load_codec, save_codec
from vivavoce.errors import CheckpointError
from vivavoce.tokenizers import load_tokenizer

transformers = peer("transformers")
peer("vocos")


@torch.no_grad()
def bend(model):
    """Gains of the norms and biases that count."""
    for name, parameter in model.named_parameters():
        if name.endswith("weight_g"):
            parameter *= torch.empty_like(parameter).uniform_(0.8, 1.25)
        elif name.endswith("bias") and "lstm" not in name:
            parameter.normal_(std=0.1)


@torch.no_grad()
def books_of(quantizer, encoder, wave):
    """Codebooks of the encodec package spread over the latents of `wave`, whose mean is brought to zero: distances
    would drown in one that a trained encoder does not have."""
    books = [layer._codebook for layer in quantizer.vq.layers]
    encoder.model[-1].conv.conv.bias -= encoder(wave).mean((0, 2))
    latents = encoder(wave)
    spread_residual(latents.transpose(1, 2).flatten(0, 1), [book.embed for book in books])
    for book in books:
        book.inited.fill_(1)
        book.cluster_size.uniform_(1, 9)


def again(codec, folder):
    save_codec(codec, folder)
    return load_codec(folder)


# -- SpeechTokenizer --

SPT = {"n_filters": 4, "strides": [4, 2, 2], "dimension": 24, "semantic_dimension": 16, "bidirectional": True,
       "dilation_base": 2, "residual_kernel_size": 3, "n_residual_layers": 1, "lstm_layers": 2, "activation": "ELU",
       "codebook_size": 256, "n_q": 4, "sample_rate": 16000}  # fmt: skip


@pytest.fixture(scope="module")
def wave():
    return speech_like(1.3, 16000)


@pytest.fixture(scope="module")
def speechtokenizer():
    """The authors' package, without its trainer."""
    with bare("speechtokenizer") as module:
        yield module("model").SpeechTokenizer


@proves("speechtokenizer", "weights")
@torch.no_grad()
def test_speechtokenizer(wave, speechtokenizer, tmp_path):
    torch.manual_seed(0)
    model = speechtokenizer(SPT).eval()
    bend(model)
    books_of(model.quantizer, model.encoder, wave)
    (tmp_path / "config.json").write_text(json.dumps(SPT))
    torch.save(model.state_dict(), tmp_path / "SpeechTokenizer.pt")
    with pytest.raises(CheckpointError, match=r"SpeechTokenizer\.pt is a pickle.*allow_pickle=True"):
        load_tokenizer(tmp_path)
    codec = load_tokenizer(tmp_path, allow_pickle=True)
    assert (codec.sample_rate, codec.hop, codec.codebooks, codec.codebook_size) == (16000, 16, 4, 256)
    for samples in (wave.shape[-1], 500, 331):
        heard = wave[..., :samples]
        theirs = model.encode(heard).transpose(0, 1)
        check_codes(codec, heard, theirs)
        check_wave(codec.decode(theirs), model.decode(theirs.transpose(0, 1)))
    check_variety(model.encode(wave))
    assert torch.equal(again(codec, tmp_path / "ours").encode(wave), codec.encode(wave))
    wrong = {"activation": ("Snake", "not ELU"), "n_q": (5, "is missing"), "n_filters": (8, "there")}
    for change, message in (({name: value}, message) for name, (value, message) in wrong.items()):
        (tmp_path / "config.json").write_text(json.dumps({**SPT, **change}))
        with pytest.raises(CheckpointError, match=message):
            load_tokenizer(tmp_path, allow_pickle=True)
    torch.save(model.state_dict(), tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="several checkpoints"):
        load_tokenizer(tmp_path, allow_pickle=True)


# -- BigCodec --


def old_norm(name):
    """A parameter of weight normalisation as the published file calls it."""
    for number, leaf in enumerate(("weight_g", "weight_v")):
        name = name.replace(f"parametrizations.weight.original{number}", leaf)
    return name


@proves("bigcodec", "weights")
@torch.no_grad()
def test_bigcodec(wave, tmp_path):
    """The authors' modules as the package bigcodec has them, which reads the file too."""
    theirs = peer("bigcodec").modules
    torch.manual_seed(0)
    stacks = theirs.CodecEncoder(ngf=4, up_ratios=(2, 5), out_channels=24).eval()
    sizes = {"in_channels": 24, "vq_dim": 24, "upsample_initial_channel": 32, "up_ratios": (5, 2)}
    generator = theirs.CodecDecoder(**sizes, codebook_size=512).eval()
    for name, parameter in (*stacks.named_parameters(), *generator.named_parameters()):
        if name.endswith("original0"):
            parameter *= torch.empty_like(parameter).uniform_(0.8, 1.25)
        elif parameter.dim() == 1:
            parameter.normal_(std=0.1)
        elif name.endswith("original1"):
            parameter.normal_()
    level = generator.quantizer.layers[0]
    heard = wave[..., 2000:10000]
    points = level.in_proj(stacks(heard).transpose(1, 2)).flatten(0, 1)
    level.in_proj.bias -= points.mean(0)
    level._codebook.weight.copy_(torch.randn(512, 8) * points.std(0))
    published = {}
    for name, part in (("CodecEnc", stacks), ("generator", generator)):
        published[name] = {old_norm(key): value for key, value in part.state_dict().items()}
        part.load_state_dict(published[name])
    torch.save(published, tmp_path / "bigcodec.pt")
    with pytest.raises(CheckpointError, match=r"bigcodec\.pt is a pickle"):
        load_tokenizer(tmp_path)
    codec = load_tokenizer(tmp_path / "bigcodec.pt", allow_pickle=True)
    assert (codec.sample_rate, codec.hop, codec.codebook_sizes) == (16000, 10, (512,))
    codes = generator(stacks(heard))[1].transpose(0, 1)
    check_codes(codec, heard, codes)
    check_variety(codes)
    check_wave(codec.decode(codes), generator(generator.vq2emb(codes.transpose(1, 2)).transpose(1, 2), vq=False))
    codec = load_tokenizer(tmp_path, allow_pickle=True)
    assert torch.equal(again(codec, tmp_path / "ours").encode(heard), codec.encode(heard))
    torch.save({"CodecEnc": {}, "generator": {}}, tmp_path / "bigcodec.pt")
    with pytest.raises(CheckpointError, match="no BigCodec"):
        load_tokenizer(tmp_path, allow_pickle=True)


# -- WavTokenizer --


WAV = {
    "feature_extractor": ("decoder.feature_extractors.EncodecFeatures", {
        "encodec_model": "encodec_24khz", "bandwidths": [6.6] * 4, "num_quantizers": 1, "dowmsamples": [4, 3],
        "vq_bins": 4096}),
    "backbone": ("decoder.models.VocosBackbone", {
        "input_channels": 512, "dim": 64, "intermediate_dim": 96, "num_layers": 2, "adanorm_num_embeddings": 4}),
    "head": ("decoder.heads.ISTFTHead", {"dim": 64, "n_fft": 48, "hop_length": 12, "padding": "same"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def wavtokenizer():
    """The authors' modules, as the package outetts has them: it puts their folder on the path."""
    with bare("outetts") as module, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        module("wav_tokenizer")
        yield importlib.import_module("decoder.pretrained").WavTokenizer
    for name in [name for name in sys.modules if name.split(".")[0] in ("decoder", "encoder")]:
        del sys.modules[name]


def wav_config(**front):
    parts = {name: {"class_path": path, "init_args": dict(args)} for name, (path, args) in WAV.items()}
    parts["feature_extractor"]["init_args"] |= front
    return yaml.safe_dump({"model": {"class_path": "x", "init_args": {"sample_rate": 24000, **parts}}})


@proves("wavtokenizer", "weights")
@torch.no_grad()
def test_wavtokenizer(wave, wavtokenizer, tmp_path):
    torch.manual_seed(0)
    (tmp_path / "wavtokenizer_frame.yaml").write_text(wav_config())
    model = wavtokenizer.from_hparams0802(tmp_path / "wavtokenizer_frame.yaml").eval()
    for parameter in (*model.backbone.parameters(), *model.head.parameters()):
        parameter.add_(0.1 * torch.randn_like(parameter))
    bend(model.feature_extractor)
    inner = model.feature_extractor.encodec
    books_of(inner.quantizer, inner.encoder, wave)
    others = {"melspec_loss.mel_spec.window": torch.ones(3), "discriminator.bias": torch.ones(1)}
    torch.save({"state_dict": {**model.state_dict(), **others}, "epoch": 3}, tmp_path / "wavtokenizer.ckpt")
    with pytest.raises(CheckpointError, match=r"wavtokenizer\.ckpt is a pickle"):
        load_tokenizer(tmp_path)
    codec = load_tokenizer(tmp_path, allow_pickle=True)
    assert (codec.sample_rate, codec.hop, codec.codebook_sizes) == (24000, 12, (4096,))
    features, codes = model.encode_infer(wave[:, 0], bandwidth_id=torch.tensor([0]))
    codes = codes.transpose(0, 1)
    check_codes(codec, wave, codes)
    check_variety(codes)
    for setting in (0, 3):
        codec.condition = setting
        check_wave(codec.decode(codes), model.decode(features, bandwidth_id=torch.tensor([setting]))[:, None])
    assert torch.equal(again(codec, tmp_path / "ours").encode(wave), codec.encode(wave))
    for change, message in (({"dowmsamples": [4, 2]}, "does not undo"), ({"vq_bins": 64}, "by its configuration")):
        (tmp_path / "wavtokenizer_frame.yaml").write_text(wav_config(**change))
        with pytest.raises(CheckpointError, match=message):
            load_tokenizer(tmp_path, allow_pickle=True)


# -- FocalCodec: wavlm.py (here transformers'), focalnet.py, bsq.py, vocos.py (here the package's) --

FOCAL = {
    "encoder_config": {"hidden_dims": [8] * 7, "num_layers": 2, "dim": 16, "ffn_dim": 32, "num_heads": 2,
                       "num_buckets": 32, "max_distance": 80, "conv_pos": 16, "conv_pos_groups": 4},
    "compressor_config": {"input_dim": 16, "output_dim": 10, "hidden_dims": [16, 12], "downscale_factors": [2, 1],
                          "focal_window": 5, "focal_level": 2, "focal_factor": 2},
    "quantizer_config": {"codebook_size": 1024},
    "decompressor_config": {"input_dim": 10, "output_dim": 16, "hidden_dims": [12, 16], "upscale_factors": [1, 2],
                            "focal_window": 5, "focal_level": 2, "focal_factor": 2},
    "decoder_config": {"input_dim": 16, "num_layers": 2, "dim": 24, "ffn_dim": 40, "n_fft": 1280, "hop_length": 320},
}  # fmt: skip


class Modulation(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.in_proj, self.out_proj = nn.Linear(width, 2 * width + 3), nn.Linear(width, width)
        around = [nn.Conv1d(width, width, kernel, padding="same", groups=width) for kernel in (5, 7)]
        self.layers = nn.ModuleList(nn.Sequential(each, nn.GELU()) for each in around)
        self.context_proj = nn.Conv1d(width, width, 1)

    def forward(self, x):
        width = x.shape[-1]
        query, context, gates = self.in_proj(x).transpose(1, 2).split([width, width, 3], 1)
        total = 0
        for level, layer in enumerate(self.layers):
            context = layer(context)
            total = total + context * gates[:, level : level + 1]
        total = total + F.gelu(context.mean(-1))[..., None] * gates[:, 2:]
        return self.out_proj((query * self.context_proj(total)).transpose(1, 2))


class FocalBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.modulation_norm, self.feed_forward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.modulation, self.feed_forward = Modulation(width), nn.Module()
        self.feed_forward.in_proj = nn.Linear(width, 4 * width)
        self.feed_forward.out_proj = nn.Linear(4 * width, width)

    def forward(self, x):
        x = x + self.modulation(self.modulation_norm(x))
        mix = self.feed_forward
        return x + mix.out_proj(F.gelu(mix.in_proj(self.feed_forward_norm(x))))


class Bend(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.alpha = nn.Parameter(torch.rand(width, 1) + 0.5)

    def forward(self, x):
        return x + torch.sin(self.alpha * x).square() / (self.alpha + 1e-9)


class Squeeze(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        self.downscale, self.focal_block = nn.Module(), FocalBlock(width)
        self.downscale.downscale = nn.Conv1d(inputs, width, stride, stride)
        self.downscale.activation = Bend(width)

    def forward(self, x):
        conv = self.downscale.downscale
        x = F.pad(x.transpose(1, 2), (0, (x.shape[1] - conv.kernel_size[0]) % conv.stride[0]))
        return self.focal_block(self.downscale.activation(conv(x)).transpose(1, 2))


class Spread(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        self.focal_block, self.upscale = FocalBlock(inputs), nn.Module()
        self.upscale.activation = Bend(inputs)
        self.upscale.upscale = nn.ConvTranspose1d(inputs, width, stride, stride)

    def forward(self, x):
        return self.upscale.upscale(self.upscale.activation(self.focal_block(x).transpose(1, 2))).transpose(1, 2)


class FocalCodec(nn.Module):
    """`compressor` and `decompressor` under their names; what stands before and behind them as `heard` and `said`."""

    def __init__(self):
        from vocos.heads import ISTFTHead
        from vocos.models import VocosBackbone

        super().__init__()
        self.compressor, self.decompressor = nn.Module(), nn.Module()
        self.compressor.layers = nn.ModuleList([Squeeze(16, 16, 2), Squeeze(16, 12, 1)])
        self.compressor.out_proj, self.decompressor.in_proj = nn.Linear(12, 10), nn.Linear(10, 12)
        self.decompressor.layers = nn.ModuleList([Spread(12, 16, 1), Spread(16, 16, 2)])
        sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32,
                 "conv_dim": [8] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
                 "num_buckets": 32, "max_bucket_distance": 80, "do_stable_layer_norm": True,
                 "feat_extract_norm": "layer"}  # fmt: skip
        self.heard = transformers.WavLMModel(transformers.WavLMConfig(**sizes))
        self.said = nn.Sequential(VocosBackbone(16, 24, 40, 2), ISTFTHead(24, 1280, 320, padding="same"))

    def latents(self, wave):
        x = self.heard(wave[:, 0], output_hidden_states=True).hidden_states[2]  # no norm behind the second block
        for layer in self.compressor.layers:
            x = layer(x)
        return self.compressor.out_proj(x)

    def codes(self, wave):
        return ((self.latents(wave) > 0) * 2 ** torch.arange(9, -1, -1)).sum(-1)[:, None]

    def speak(self, codes):
        bits = (codes[:, 0, :, None] >> torch.arange(9, -1, -1)) & 1
        x = self.decompressor.in_proj((2.0 * bits - 1) / 10**0.5)
        for layer in self.decompressor.layers:
            x = layer(x)
        return self.said(x.transpose(1, 2))[:, None]

    def published(self):
        """All tensors under the names of the reference."""
        found = {name: value for name, value in self.state_dict().items() if "compressor" in name}
        theirs = {**self.heard.state_dict(), "position.weight": self.heard.encoder.pos_conv_embed.conv.weight}
        for name, value in theirs.items():
            for old, new in WAVLM_NAMES.items():
                name = name.replace(old, new)
            found[f"encoder.{name}"] = value
        for layer in range(2):
            parts = [f"encoder.layers.{layer}.attention.{kind}_proj" for kind in "qkv"]
            for leaf in ("weight", "bias"):
                joined = torch.cat([theirs[f"{part}.{leaf}"] for part in parts])
                found[f"encoder.encoder.layers.{layer}.attention.qkv_proj.{leaf}"] = joined
        for name, value in self.said.state_dict().items():
            old, new = next(each for each in VOCOS_NAMES.items() if name.startswith(each[0]))
            name = name.replace(old, new, 1)
            found[f"decoder.{name}"] = value
        left_out = ("masked_spec", "parametrizations", "layers.2.", ".q_proj", ".k_proj", ".v_proj",
                    "encoder.encoder.norm")  # fmt: skip
        kept = {name: value for name, value in found.items() if not name.startswith("encoder.")
                or not any(each in name for each in left_out) or "feature_extractor" in name}  # fmt: skip
        return {name: value.clone() for name, value in kept.items() if "istft" not in name}


WAVLM_NAMES = {
    "feature_extractor.conv_layers": "feature_extractor.layers",
    "feature_projection.layer_norm": "norm",
    "feature_projection.projection": "feature_proj",
    "encoder.pos_conv_embed.conv": "encoder.positional_embedding.conv",
    "position.weight": "encoder.positional_embedding.conv.weight",
    "encoder.layers.0.attention.rel_attn_embed": "encoder.relative_embedding",
    "feed_forward.intermediate_dense": "feed_forward.in_proj",
    "feed_forward.output_dense": "feed_forward.out_proj",
    "final_layer_norm": "feed_forward_norm",
    "0.layer_norm": "0.attention_norm",
    "1.layer_norm": "1.attention_norm",
    "encoder.layer_norm": "encoder.norm",
}
VOCOS_NAMES = {"0.embed": "backbone.embedding", "0.norm.": "backbone.input_norm.", "0.convnext": "backbone.layers",
               "0.final_layer_norm": "backbone.output_norm", "1.out": "head.proj", "1.istft": "istft"}  # fmt: skip


@proves("focalcodec", "weights", "loads")
@torch.no_grad()
def test_focalcodec(wave, tmp_path):
    torch.manual_seed(0)
    model = FocalCodec().eval()
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    model.compressor.out_proj.bias -= model.latents(wave).mean((0, 1))
    found = {}
    for name, value in model.published().items():
        if "feature_extractor" in name:  # whose norms are called as those of the blocks were
            name = name.replace("attention_norm", "norm").replace("layer_norm", "norm")
        found[name] = value
    save_file(found, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(FOCAL))
    codec = load_tokenizer(tmp_path)
    assert (codec.sample_rate, codec.hop, codec.codebook_sizes) == (16000, 640, (1024,))
    for samples in (wave.shape[-1], 400, 720, 6000):
        heard = wave[..., 2000 : 2000 + samples]
        theirs = model.codes(heard)
        assert codec.frames(heard.shape[-1]) == theirs.shape[2] == -(-((heard.shape[-1] - 400) // 320 + 1) // 2)
        check_codes(codec, heard, theirs)
        check_wave(codec.decode(theirs), model.speak(theirs))
    long = speech_like(12, 16000)
    codes = model.codes(long)
    check_codes(codec, long, codes)
    check_variety(codes)
    codes = codec.encode(wave)
    assert codec.decode(codes, torch.tensor([wave.shape[-1]])).shape == wave.shape
    both = codec.encode(torch.cat([wave, wave.flip(-1)]), torch.tensor([9000, wave.shape[-1]]))
    assert torch.equal(both[0, :, :14], codec.encode(wave[..., :9000])[0])
    assert torch.equal(again(codec, tmp_path / "ours").encode(wave), codes)
    for change, message in (
        ({"decoder_name": "WaveNeXt"}, "only 'Vocos'"), ({"quantizer_config": {"codebook_size": 64}}, "latents"),
        ({"compressor_config": {**FOCAL["compressor_config"], "causal": True}}, "causal is not supported"),
        ({"decompressor_config": {**FOCAL["decompressor_config"], "focal_window": 7}}, "does not mirror"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**FOCAL, **change}))
        with pytest.raises(CheckpointError, match=message):
            load_tokenizer(tmp_path)
