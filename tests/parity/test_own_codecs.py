"""Codecs in their authors' own files: names and structure of the reference repositories, in plain torch and by the
packages that they are made of (encodec, vocos, transformers' WavLM)."""

import json

import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import save_file
from torch import nn

from codec_parity import check_codes, check_wave, speech_like, spread, spread_residual
from peers import peer
from proves import proves
from vivavoce.codecs import load_codec, save_codec
from vivavoce.errors import CheckpointError
from vivavoce.nn.antialiased import lowpass
from vivavoce.tokenizers import load_tokenizer

encodec = peer("encodec")
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
       "codebook_size": 64, "n_q": 4, "sample_rate": 16000}  # fmt: skip


class BothWays(nn.Module):
    """speechtokenizer/modules/lstm.py: both directions side by side, the input twice beside them."""

    def __init__(self, width, layers):
        super().__init__()
        self.lstm = nn.LSTM(width, width, layers, bidirectional=True)

    def forward(self, x):
        x = x.permute(2, 0, 1)
        return (self.lstm(x)[0] + torch.cat([x, x], 2)).permute(1, 2, 0)


class SpeechTokenizer(nn.Module):
    def __init__(self):
        super().__init__()
        modules, form = encodec.modules, {"causal": False, "true_skip": False, "ratios": SPT["strides"]}
        sizes = {"n_filters": SPT["n_filters"], "dimension": SPT["dimension"]}
        self.encoder = modules.SEANetEncoder(**sizes, **form, lstm=0)
        width = SPT["n_filters"] * 2 ** len(SPT["strides"])
        last = modules.SConv1d(2 * width, SPT["dimension"], 7, norm="weight_norm", causal=False, pad_mode="reflect")
        layers = [*list(self.encoder.model)[:-2], BothWays(width, SPT["lstm_layers"]), nn.ELU(), last]
        self.encoder.model = nn.Sequential(*layers)
        self.transform = nn.Linear(SPT["dimension"], SPT["semantic_dimension"])
        books = encodec.quantization.ResidualVectorQuantizer
        self.quantizer = books(SPT["dimension"], SPT["n_q"], SPT["codebook_size"])
        self.decoder = modules.SEANetDecoder(**sizes, **form, lstm=SPT["lstm_layers"])


@pytest.fixture(scope="module")
def wave():
    return speech_like(1.3, 16000)


@proves("speechtokenizer", "weights", "loads")
@torch.no_grad()
def test_speechtokenizer(wave, tmp_path):
    torch.manual_seed(0)
    model = SpeechTokenizer().eval()
    bend(model)
    books_of(model.quantizer, model.encoder, wave)
    (tmp_path / "config.json").write_text(json.dumps(SPT))
    torch.save(model.state_dict(), tmp_path / "SpeechTokenizer.pt")
    with pytest.raises(CheckpointError, match=r"SpeechTokenizer\.pt is a pickle.*allow_pickle=True"):
        load_tokenizer(tmp_path)
    codec = load_tokenizer(tmp_path, allow_pickle=True)
    assert (codec.sample_rate, codec.hop, codec.codebooks, codec.codebook_size) == (16000, 16, 4, 64)
    for samples in (wave.shape[-1], 500, 331):
        heard = wave[..., :samples]
        theirs = model.quantizer.vq.encode(model.encoder(heard)).transpose(0, 1)
        check_codes(codec, heard, theirs)
        check_wave(codec.decode(theirs), model.decoder(model.quantizer.vq.decode(theirs.transpose(0, 1))))
    theirs = model.quantizer.vq.encode(model.encoder(wave))
    assert len(theirs.unique()) == 64
    assert torch.equal(again(codec, tmp_path / "ours").encode(wave), codec.encode(wave))
    wrong = {"activation": ("Snake", "not ELU"), "n_q": (5, "is missing"), "n_filters": (8, "there")}
    for change, message in (({name: value}, message) for name, (value, message) in wrong.items()):
        (tmp_path / "config.json").write_text(json.dumps({**SPT, **change}))
        with pytest.raises(CheckpointError, match=message):
            load_tokenizer(tmp_path, allow_pickle=True)
    torch.save(model.state_dict(), tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="several checkpoints"):
        load_tokenizer(tmp_path, allow_pickle=True)


# -- BigCodec: vq/codec_encoder.py, codec_decoder.py, module.py, factorized_vector_quantize.py --


class Filter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("filter", lowpass().view(1, 1, -1))


class Activation(nn.Module):
    """BigVGAN's, of twelve taps: up by zeros and the filter, SnakeBeta, down by the filter."""

    def __init__(self, width):
        super().__init__()
        self.act = nn.Module()
        self.act.alpha, self.act.beta = nn.Parameter(torch.rand(width) - 0.5), nn.Parameter(torch.rand(width) - 0.5)
        self.upsample, self.downsample = Filter(), nn.Module()
        self.downsample.lowpass = Filter()

    def forward(self, x):
        width = x.shape[1]
        taps = self.upsample.filter.expand(width, 1, -1)
        up = 2 * F.conv_transpose1d(F.pad(x, (5, 5), mode="replicate"), taps, stride=2, groups=width)[..., 15:-15]
        alpha, beta = self.act.alpha.exp()[:, None], self.act.beta.exp()[:, None]
        bent = up + torch.sin(alpha * up).square() / (beta + 1e-9)
        return F.conv1d(F.pad(bent, (5, 6), mode="replicate"), taps, stride=2, groups=width)


def normed(layer):
    return nn.utils.weight_norm(layer)


class Unit(nn.Module):
    def __init__(self, width, dilation):
        super().__init__()
        wide = normed(nn.Conv1d(width, width, 7, dilation=dilation, padding=3 * dilation))
        self.block = nn.Sequential(Activation(width), wide, Activation(width), normed(nn.Conv1d(width, width, 1)))

    def forward(self, x):
        return x + self.block(x)


class Block(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.block = nn.Sequential(*layers)

    def forward(self, x):
        return self.block(x)


class Memory(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.lstm = nn.LSTM(width, width, 2, batch_first=True)

    def forward(self, x):
        x = x.transpose(1, 2)
        return (self.lstm(x)[0] + x).transpose(1, 2)


def edge(stride):
    return stride // 2 + stride % 2


def big_encoder(width, strides, latent):
    layers = [normed(nn.Conv1d(1, width, 7, padding=3))]
    for stride in strides:
        down = normed(nn.Conv1d(width, 2 * width, 2 * stride, stride, padding=edge(stride)))
        layers.append(Block(*(Unit(width, d) for d in (1, 3, 9)), Activation(width), down))
        width *= 2
    return nn.Sequential(*layers, Memory(width), Activation(width), normed(nn.Conv1d(width, latent, 3, padding=1)))


class Generator(nn.Module):
    def __init__(self, width, strides, latent, size):
        super().__init__()
        level = nn.Module()
        level.in_proj, level.out_proj = normed(nn.Linear(latent, 8)), normed(nn.Linear(8, latent))
        level._codebook = nn.Embedding(size, 8)
        self.quantizer = nn.Module()
        self.quantizer.layers = nn.ModuleList([level])
        layers = [normed(nn.Conv1d(latent, width, 7, padding=3)), Memory(width)]
        for stride in strides:
            up = nn.ConvTranspose1d(
                width, width // 2, 2 * stride, stride, padding=edge(stride), output_padding=stride % 2
            )
            layers.append(Block(Activation(width), normed(up), *(Unit(width // 2, d) for d in (1, 3, 9))))
            width //= 2
        self.model = nn.Sequential(*layers, Activation(width), normed(nn.Conv1d(width, 1, 7, padding=3)), nn.Tanh())

    def codes(self, latents):
        level = self.quantizer.layers[0]
        points = F.normalize(level.in_proj(latents.transpose(1, 2)), dim=-1)
        return (points @ F.normalize(level._codebook.weight, dim=-1).t()).argmax(-1)

    def speak(self, codes):
        level = self.quantizer.layers[0]
        return self.model(level.out_proj(level._codebook(codes)).transpose(1, 2))


@proves("bigcodec", "weights", "loads")
@torch.no_grad()
def test_bigcodec(wave, tmp_path):
    torch.manual_seed(0)
    stacks = nn.Module()
    stacks.block = big_encoder(4, (2, 5), 24)
    generator = Generator(32, (5, 2), 24, 128)
    for model in (stacks, generator):
        bend(model.eval())
    level = generator.quantizer.layers[0]
    heard = wave[..., 2000:8000]
    level._codebook.weight.copy_(spread(level.in_proj(stacks.block(heard).transpose(1, 2)).flatten(0, 1), 128, 0))
    torch.save({"CodecEnc": stacks.state_dict(), "generator": generator.state_dict()}, tmp_path / "bigcodec.pt")
    with pytest.raises(CheckpointError, match=r"bigcodec\.pt is a pickle"):
        load_tokenizer(tmp_path)
    codec = load_tokenizer(tmp_path / "bigcodec.pt", allow_pickle=True)
    assert (codec.sample_rate, codec.hop, codec.codebook_sizes) == (16000, 10, (128,))
    theirs = generator.codes(stacks.block(heard))[:, None]
    check_codes(codec, heard, theirs)
    assert len(theirs.unique()) > 30
    check_wave(codec.decode(theirs), generator.speak(theirs[:, 0]))
    codec = load_tokenizer(tmp_path, allow_pickle=True)
    assert torch.equal(again(codec, tmp_path / "ours").encode(heard), codec.encode(heard))
    torch.save({"CodecEnc": {}, "generator": {}}, tmp_path / "bigcodec.pt")
    with pytest.raises(CheckpointError, match="no BigCodec"):
        load_tokenizer(tmp_path, allow_pickle=True)


# -- WavTokenizer: decoder/pretrained.py, models.py, feature_extractors.py, configs/*.yaml --


class PosBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = (nn.GroupNorm(32, width, eps=1e-6) for _ in range(2))
        self.conv1, self.conv2 = (nn.Conv1d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x):
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class PosAttention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.GroupNorm(32, width, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv1d(width, width, 1) for _ in range(4))

    def forward(self, x):
        y = self.norm(x)
        scores = self.q(y).transpose(1, 2) @ self.k(y) * x.shape[1] ** -0.5
        return x + self.proj_out(self.v(y) @ scores.softmax(2).transpose(1, 2))


class WavTokenizer(nn.Module):
    def __init__(self, dim, ratios, size, width, hidden, layers, hop):
        from vocos.heads import ISTFTHead
        from vocos.models import VocosBackbone

        super().__init__()
        form = {"causal": False, "true_skip": False, "n_filters": 4, "dimension": dim, "lstm": 2}
        self.feature_extractor = nn.Module()
        inner = self.feature_extractor.encodec = nn.Module()
        inner.encoder = encodec.modules.SEANetEncoder(**form, ratios=ratios)
        inner.decoder = encodec.modules.SEANetDecoder(**form, ratios=[2])  # which nothing uses
        inner.quantizer = encodec.quantization.ResidualVectorQuantizer(dim, 1, size)
        self.backbone = VocosBackbone(dim, width, hidden, layers, adanorm_num_embeddings=4)
        blocks = [PosBlock(width), PosBlock(width), PosAttention(width), PosBlock(width), PosBlock(width)]
        self.backbone.pos_net = nn.Sequential(*blocks, nn.GroupNorm(32, width, eps=1e-6))
        self.head = ISTFTHead(width, 4 * hop, hop, padding="same")

    def speak(self, codes, setting):
        x = self.feature_extractor.encodec.quantizer.vq.decode(codes.transpose(0, 1))
        body = self.backbone
        x = body.norm(body.pos_net(body.embed(x)).transpose(1, 2), cond_embedding_id=setting).transpose(1, 2)
        for block in body.convnext:
            x = block(x, cond_embedding_id=setting)
        return self.head(body.final_layer_norm(x.transpose(1, 2)))[:, None]


def wav_config(**front):
    parts = {
        "feature_extractor": {"encodec_model": "encodec_24khz", "bandwidths": [6.6] * 4, "num_quantizers": 1,
                              "dowmsamples": [4, 3], "vq_bins": 128, **front},
        "backbone": {"input_channels": 24, "dim": 64, "intermediate_dim": 96, "num_layers": 2,
                     "adanorm_num_embeddings": 4},
        "head": {"dim": 64, "n_fft": 48, "hop_length": 12, "padding": "same"},
    }  # fmt: skip
    said = {name: {"class_path": name, "init_args": args} for name, args in parts.items()}
    return yaml.safe_dump({"model": {"class_path": "x", "init_args": {"sample_rate": 24000, **said}}})


@proves("wavtokenizer", "weights", "loads")
@torch.no_grad()
def test_wavtokenizer(wave, tmp_path):
    torch.manual_seed(0)
    model = WavTokenizer(24, [4, 3], 128, 64, 96, 2, 12).eval()
    for parameter in (*model.backbone.parameters(), *model.head.parameters()):
        parameter.add_(0.1 * torch.randn_like(parameter))
    bend(model.feature_extractor)
    inner = model.feature_extractor.encodec
    books_of(inner.quantizer, inner.encoder, wave)
    (tmp_path / "wavtokenizer_frame.yaml").write_text(wav_config())
    others = {"melspec_loss.mel_spec.window": torch.ones(3), "discriminator.bias": torch.ones(1)}
    torch.save({"state_dict": {**model.state_dict(), **others}, "epoch": 3}, tmp_path / "wavtokenizer.ckpt")
    with pytest.raises(CheckpointError, match=r"wavtokenizer\.ckpt is a pickle"):
        load_tokenizer(tmp_path)
    codec = load_tokenizer(tmp_path, allow_pickle=True)
    assert (codec.sample_rate, codec.hop, codec.codebook_sizes) == (24000, 12, (128,))
    theirs = inner.quantizer.vq.encode(inner.encoder(wave)).transpose(0, 1)
    check_codes(codec, wave, theirs)
    assert len(theirs.unique()) > 40
    for setting in (0, 3):
        codec.condition = setting
        check_wave(codec.decode(theirs), model.speak(theirs, torch.tensor([setting])))
    assert torch.equal(again(codec, tmp_path / "ours").encode(wave), codec.encode(wave))
    for change, message in (({"dowmsamples": [4, 2]}, "does not undo"), ({"vq_bins": 64}, "by its configuration")):
        (tmp_path / "wavtokenizer_frame.yaml").write_text(wav_config(**change))
        with pytest.raises(CheckpointError, match=message):
            load_tokenizer(tmp_path, allow_pickle=True)


# -- FocalCodec: wavlm.py (here transformers'), focalnet.py, bsq.py, vocos.py (here the package's) --

FOCAL = {
    "encoder_config": {"hidden_dims": [8] * 7, "num_layers": 2, "dim": 16, "ffn_dim": 32, "num_heads": 2,
                       "num_buckets": 32, "max_distance": 80, "conv_pos": 16, "conv_pos_groups": 4},
    "compressor_config": {"input_dim": 16, "output_dim": 7, "hidden_dims": [16, 12], "downscale_factors": [2, 1],
                          "focal_window": 5, "focal_level": 2, "focal_factor": 2},
    "quantizer_config": {"codebook_size": 128},
    "decompressor_config": {"input_dim": 7, "output_dim": 16, "hidden_dims": [12, 16], "upscale_factors": [1, 2],
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
        self.compressor.out_proj, self.decompressor.in_proj = nn.Linear(12, 7), nn.Linear(7, 12)
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
        return ((self.latents(wave) > 0) * 2 ** torch.arange(6, -1, -1)).sum(-1)[:, None]

    def speak(self, codes):
        bits = (codes[:, 0, :, None] >> torch.arange(6, -1, -1)) & 1
        x = self.decompressor.in_proj((2.0 * bits - 1) / 7**0.5)
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
    assert (codec.sample_rate, codec.hop, codec.codebook_sizes) == (16000, 640, (128,))
    for samples in (wave.shape[-1], 400, 720, 6000):
        heard = wave[..., 2000 : 2000 + samples]
        theirs = model.codes(heard)
        assert codec.frames(heard.shape[-1]) == theirs.shape[2] == -(-((heard.shape[-1] - 400) // 320 + 1) // 2)
        check_codes(codec, heard, theirs)
        check_wave(codec.decode(theirs), model.speak(theirs))
    codes = codec.encode(wave)
    assert len(codes.unique()) > 8
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
