"""Published APC, VQ-APC, TERA and DeCoAR 2.0, as S3PRL reads them, into our encoders of mel frames.

Source: s3prl 0.4.18, upstream/apc, upstream/mockingjay and upstream/decoar2; their frames are Kaldi's filter bank of
waveforms in [-1, 1], each band of zero mean and unit variance over the utterance.
"""

from pathlib import Path

import torch

from vivavoce.encoders.fairseq import BLOCK, read_tree
from vivavoce.encoders.mel_trunk import MelRecurrent, MelTransformer
from vivavoce.encoders.names import Names
from vivavoce.encoders.pretrained import check_settings, check_sizes, fill
from vivavoce.errors import CheckpointError

FBANK = {"frame_length": 25, "frame_shift": 10, "use_log_fbank": True, "low_freq": 20, "high_freq": 0}
TERA = Names({
    "input_representations.spec_transform": "projection",
    "input_representations.LayerNorm": "norm",
    "encoder.layer.*.attention.self.query": "blocks.*.query",
    "encoder.layer.*.attention.self.key": "blocks.*.key",
    "encoder.layer.*.attention.self.value": "blocks.*.value",
    "encoder.layer.*.attention.output.dense": "blocks.*.output",
    "encoder.layer.*.attention.output.LayerNorm": "blocks.*.attention_norm",
    "encoder.layer.*.intermediate.dense": "blocks.*.widen",
    "encoder.layer.*.output.dense": "blocks.*.narrow",
    "encoder.layer.*.output.LayerNorm": "blocks.*.feedforward_norm",
})  # fmt: skip


DECOAR2 = Names({
    "post_extract_proj": "projection",
    "encoder.pos_conv.0": "position",
    "encoder.layer_norm": "norm",
    **{f"encoder.layers.*.{theirs}": f"blocks.*.{ours}" for theirs, ours in BLOCK.items()},
})  # fmt: skip


def load_apc(source: str | Path, allow_pickle: bool = False) -> MelRecurrent:
    """APC or VQ-APC with published weights, in evaluation mode; what is behind the last layer is left out.

    source: a file with `config` and `model`. allow_pickle: it is a pickle, read by weights-only loading. Raises
    `RequestError` where there is none, `CheckpointError` where it does not fit.
    """
    tree = read_tree(Path(source), allow_pickle)
    try:
        audio, sizes, state = tree["config"]["data"]["audio"], tree["config"]["model"]["paras"], tree["model"]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{source}: lacks {error}: no checkpoint of APC") from error
    check_settings(audio, str(source), **FBANK, feat_type="fbank", cmvn=True, window_type="hamming")
    check_sizes(sizes, str(source), ["hidden_size", "num_layers", "residual"])
    model = MelRecurrent(
        sizes["hidden_size"], sizes["num_layers"], sizes["residual"], direct=True, dropout=sizes.get("dropout", 0.0),
        mels=audio["feat_dim"], normalize="sample", fbank={"taper": "hamming", "scale": 1.0},
    )  # fmt: skip
    ours = {
        name.replace("rnn_layers", "recurrent"): value for name, value in state.items() if name.startswith("rnn_layers")
    }
    fill(model, ours, str(source))
    return model.eval()


def load_tera(source: str | Path, allow_pickle: bool = False) -> MelTransformer:
    """TERA (or Mockingjay over such frames) with published weights, in evaluation mode; its head is left out.

    source: a file with `Config` and `Transformer`; otherwise as `load_apc`.
    """
    tree = read_tree(Path(source), allow_pickle)
    try:
        sizes, audio, state = tree["Config"]["transformer"], tree["Config"]["audio"], tree["Transformer"]
        fbank = audio["kaldi"]["fbank"]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{source}: lacks {error}: no checkpoint of TERA over Kaldi's filter bank") from error
    check_settings(fbank, str(source), **FBANK)
    check_settings(audio.get("delta", {}), str(source), order=0)
    check_settings(audio.get("cmvn", {}), str(source), use_cmvn=True)
    check_settings(sizes, str(source), hidden_act="gelu", share_layer=False, pre_layer_norm=False)
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "layer_norm_eps")
    check_sizes(sizes, str(source), names)
    width, layers, heads, hidden, epsilon = (sizes[name] for name in names)
    model = MelTransformer(
        width, layers, heads, hidden, "pairs", position_groups=1, epsilon=float(epsilon),
        dropout=sizes.get("hidden_dropout_prob", 0.0), mels=fbank.get("num_mel_bins", 23), stack=1, normalize="sample",
        fbank={"taper": fbank.get("window_type", "povey"), "scale": 1.0},
    )  # fmt: skip
    fill(model, {TERA.ours(_newer(name)) or name: value for name, value in state.items()}, str(source))
    return model.eval()


def load_decoar2(source: str | Path, allow_pickle: bool = False) -> MelTransformer:
    """DeCoAR 2.0 with published weights, in evaluation mode: awslabs' file, with `model`, whose quantizer and head are
    left out. The file tells no sizes: heads are of 64 channels, as published. Otherwise as `load_apc`."""
    tree = read_tree(Path(source), allow_pickle)
    state = dict(tree.get("model", {}))
    place = "encoder.pos_conv.0.weight"
    if f"{place}_g" not in state or "post_extract_proj.weight" not in state:
        raise CheckpointError(f"{source}: lacks {place}_g or post_extract_proj: no checkpoint of DeCoAR 2.0")
    state[place] = torch._weight_norm(state.pop(f"{place}_v"), state.pop(f"{place}_g"), 2)
    ours = {name: value for key, value in state.items() if (name := DECOAR2.ours(key)) is not None}
    width, mels = state["post_extract_proj.weight"].shape
    layers = 1 + max((int(name.split(".")[1]) for name in ours if name.startswith("blocks.")), default=0)
    hidden = ours["blocks.0.widen.weight"].shape[0]
    kernel, groups = state[place].shape[2], width // state[place].shape[1]
    model = MelTransformer(
        width, layers, max(1, width // 64), hidden, position_kernel=kernel, position_groups=groups, mels=mels, stack=1,
        every=2, normalize="sample", fbank={"taper": "hamming", "scale": 1.0},
    )  # fmt: skip
    fill(model, ours, str(source))
    return model.eval()


def _newer(name: str) -> str:
    """gamma and beta, as old files call what norms have."""
    stem, _, leaf = name.rpartition(".")
    return f"{stem}.{ {'gamma': 'weight', 'beta': 'bias'}.get(leaf, leaf)}"
