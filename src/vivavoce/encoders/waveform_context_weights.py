"""Published checkpoints of CPC (CPC_audio's, and S3PRL's copy of them) and of the first wav2vec (fairseq's, and
S3PRL's copy)."""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vivavoce.encoders.fairseq import convolutions, read_tree
from vivavoce.encoders.pretrained import check_settings, fill
from vivavoce.encoders.waveform_context import WaveformContext, WaveformContextConfig
from vivavoce.errors import CheckpointError
from vivavoce.pretrained import read_json

# What CPC_audio's command sets where a checkpoint does not say (cpc/cpc_default_config.py).
CPC_DEFAULTS = {"hiddenEncoder": 256, "hiddenGar": 256, "arMode": "LSTM", "nLevelsGRU": 1}
# fairseq's base architecture, where a checkpoint does not say.
WAV2VEC_DEFAULTS = {
    "conv_feature_layers": "[(512, 10, 5), (512, 8, 4), (512, 4, 2), (512, 4, 2), (512, 4, 2)]",
    "conv_aggregator_layers": "[(512, 3, 1)] * 9", "skip_connections_agg": False, "residual_scale": 0.5,
    "no_conv_bias": False, "agg_zero_pad": False, "log_compression": False, "dropout": 0.0,
}  # fmt: skip
# The parts of a convolution, by their numbers in a sequence.
WAV2VEC = {
    "feature_extractor": ("front", {"0": "conv", "2": "norm"}),
    "feature_aggregator": ("blocks", {"1": "conv", "3": "norm"}),
}


def load_cpc(source: str | Path, allow_pickle: bool = False) -> WaveformContext:
    """CPC with published weights, in evaluation mode.

    source: a folder of CPC_audio (checkpoint_N.pt, of which the last, and checkpoint_args.json), one such file beside
    its checkpoint_args.json, or S3PRL's file, which holds both. allow_pickle: it is a pickle, read by weights-only
    loading. Raises `RequestError` where there is no such file, `CheckpointError` where it does not fit.
    """
    path = Path(source)
    if path.is_dir():
        found = [each for each in path.glob("checkpoint_*.pt") if each.stem.removeprefix("checkpoint_").isdigit()]
        path = max(found, key=lambda each: int(each.stem.removeprefix("checkpoint_")), default=path / "checkpoint_0.pt")
    tree = read_tree(path, allow_pickle)
    if "config" in tree:
        settings, state = tree["config"], tree["weights"]
    elif "gEncoder" in tree:
        settings, state = read_json(path.with_name("checkpoint_args.json")), tree["gEncoder"]
    else:
        raise CheckpointError(f"{path}: holds neither gEncoder nor config and weights: no checkpoint of CPC")
    model = WaveformContext(_cpc_config({**CPC_DEFAULTS, **settings}, str(path)))
    ours: dict[str, Tensor] = {}
    for name, value in state.items():
        part, _, leaf = name.rpartition(".")
        if part.startswith("gEncoder.batchNorm"):
            at = part.removeprefix("gEncoder.batchNorm")
            ours[f"front.{at}.norm.{leaf}"] = value.reshape(-1)
        elif part == "gAR.baseNet":  # weight_ih_l3: of the layer 3
            kind, _, at = leaf.rpartition("_l")
            ours[f"blocks.{at}.{kind}_l0"] = value
        else:
            at = part.removeprefix("gEncoder.conv")
            ours[f"front.{at}.conv.{leaf}"] = value
    fill(model, ours, str(path))
    return model.eval()


def load_wav2vec(source: str | Path, allow_pickle: bool = False) -> WaveformContext:
    """The first wav2vec with published weights, in evaluation mode.

    source: fairseq's file (`args`, `model`) or S3PRL's (`model_cfg`, `model_weight`); otherwise as `load_cpc`. Heads
    and quantizers are left out.
    """
    tree = read_tree(Path(source), allow_pickle)
    if "model_weight" in tree:
        settings, state = tree["model_cfg"], tree["model_weight"]
    elif isinstance(tree.get("args"), Namespace):
        settings, state = vars(tree["args"]), tree["model"]
    else:
        raise CheckpointError(f"{source}: holds neither args nor model_cfg: no checkpoint of wav2vec")
    model = WaveformContext(_wav2vec_config({**WAV2VEC_DEFAULTS, **settings}, str(source)))
    ours = {}
    for name, value in state.items():
        part, _, rest = name.partition(".")
        if part in WAV2VEC and rest.count(".") == 3:
            at, kind, leaf = rest.removeprefix("conv_layers.").split(".", 2)  # 3, 0, weight
            mine, kinds = WAV2VEC[part]
            ours[f"{mine}.{at}.{kinds.get(kind, kind)}.{leaf}"] = value
    fill(model, ours, str(source))
    return model.eval()


def _cpc_config(settings: Mapping[str, Any], source: str) -> WaveformContextConfig:
    check_settings(settings, source, encoder_type="cpc", normMode="layerNorm", cpc_mode=None)
    width, body = settings["hiddenEncoder"], settings["arMode"]
    if body not in ("GRU", "LSTM"):
        raise CheckpointError(f"{source}: arMode={body!r} is not supported, only GRU and LSTM")
    if settings["hiddenGar"] != width:
        raise CheckpointError(f"{source}: hiddenGar {settings['hiddenGar']} differs from hiddenEncoder {width}")
    return WaveformContextConfig(conv_widths=(width,) * 5, body=body.lower(), layers=settings["nLevelsGRU"])


def _wav2vec_config(settings: Mapping[str, Any], source: str) -> WaveformContextConfig:
    check_settings(settings, source, aggregator="cnn", skip_connections_feat=False, non_affine_group_norm=False,
                   activation="relu", vq_type="none", residual_scale=0.5, no_conv_bias=False)  # fmt: skip
    front, back = (convolutions(settings[f"conv_{part}_layers"], source) for part in ("feature", "aggregator"))
    if any(width != front[-1][0] or stride != 1 for width, _, stride in back):
        raise CheckpointError(f"{source}: convolutions behind the first of another width or stride are not supported")
    widths, kernels, strides = zip(*front, strict=True)
    return WaveformContextConfig(
        conv_widths=widths, conv_kernels=kernels, conv_strides=strides, conv_padding=(0,) * len(front), conv_bias=False,
        norm="signal", logarithm=settings["log_compression"], body="convolution", kernels=tuple(k for _, k, _ in back),
        skip=settings["skip_connections_agg"], replicate=not settings["agg_zero_pad"], dropout=settings["dropout"],
    )  # fmt: skip
