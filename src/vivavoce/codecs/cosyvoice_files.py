"""CosyVoice 2's own directory (FunAudioLLM/CosyVoice2-0.5B) as a codec: `flow.pt`, `hift.pt`,
`speech_tokenizer_v2.onnx` and `cosyvoice2.yaml`, which says the sizes. `llm.pt` and the speaker encoder `campplus.onnx`
have no place in it: voices are told by vectors, or a prompt.

The tokenizer's weights are read out of the ONNX file by the names of the nodes that use them, which both published
versions have; xingchensong/S3Tokenizer (utils.py, `onnx2torch`) found out which is which.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from vivavoce.codecs.onnx_weights import fed_by, read_onnx
from vivavoce.codecs.semantic import SemanticCodec, SemanticConfig
from vivavoce.codecs.semantic_weights import fill_s3
from vivavoce.errors import CheckpointError, RecipeError
from vivavoce.nn.weights import check_asked, read_pickle
from vivavoce.vocoders.cosyvoice_weights import fill_flow, fill_hift

FLOW, HIFT, TOKENS, SETTINGS = "flow.pt", "hift.pt", "speech_tokenizer_v2.onnx", "cosyvoice2.yaml"
FIRST = "speech_tokenizer_v1.onnx"
HEAD = 64  # width of a head, as Whisper's
PARTS = re.compile(r"/blocks\.(\d+)/(attn_ln|mlp_ln|attn/(?:query|key|value|out|fsmn_block)|mlp/mlp\.[02])/(\w+)")


def is_cosyvoice(folder: Path) -> bool:
    """Whether a directory is one of CosyVoice's, of either version."""
    return (folder / FLOW).is_file() and any((folder / name).is_file() for name in (TOKENS, FIRST))


def load_cosyvoice(folder: Path, allow_pickle: bool = False) -> SemanticCodec:
    """The codec of such a directory, in evaluation mode. flow.pt and hift.pt are pickles, which are read only with
    `allow_pickle`, by weights-only loading. Raises `CheckpointError`."""
    if not (folder / TOKENS).is_file():
        raise CheckpointError(
            f"{folder} is CosyVoice's first version, whose flow (of another length, not causal) is not built here; "
            f"{FIRST} alone can be read (`codecs.cosyvoice_files.s3_weights`) into a codec `cosyvoice-50hz`"
        )
    check_asked(folder / FLOW, allow_pickle)
    tokens = s3_weights(folder / TOKENS)
    told = settings(folder / SETTINGS)
    try:
        config = SemanticConfig.of({**_spoken(told), "ears": _ears(tokens, folder / TOKENS)})
        codec = SemanticCodec(config)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{folder / SETTINGS}: {error} is missing or of another kind") from None
    except RecipeError as error:
        raise CheckpointError(f"{folder / SETTINGS}: {error}") from error
    fill_s3(codec, tokens, str(folder / TOKENS))
    fill_flow(codec.to_mel, read_pickle(folder / FLOW, []), str(folder / FLOW))
    fill_hift(codec.vocoder, read_pickle(folder / HIFT, []), str(folder / HIFT))
    return codec.eval()


class _Plain(yaml.SafeLoader):
    """HyperPyYAML's tags as plain values: a mapping, a list, or the text behind `!ref`. Nothing is made or called."""


def _value(loader: yaml.SafeLoader, _: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return node.value


_Plain.add_multi_constructor("!", _value)  # type: ignore[no-untyped-call]


def settings(path: Path) -> dict[str, Any]:
    """What a HyperPyYAML file says, references to its own plain values filled in. Raises `CheckpointError`."""
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), _Plain)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path}: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: settings by their names are expected")

    def filled(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: filled(each) for name, each in value.items()}
        if isinstance(value, list):
            return [filled(each) for each in value]
        named = re.fullmatch(r"<(\w+)>", value) if isinstance(value, str) else None
        return found.get(named[1], value) if named else value

    return filled(found)


def _spoken(told: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of flow and vocoder."""
    flow, hift = told["flow"], told["hift"]
    encoder, estimator = flow["encoder"], flow["decoder"]["estimator"]
    sizes = {
        "speaker": flow["spk_embed_dim"],
        "ahead": flow["pre_lookahead_len"],
        "chunk": flow["input_frame_rate"],  # a second; the estimator's static_chunk_size, in mel frames, is the same
        "left": estimator.get("num_decoding_left_chunks", 2),
        "width": encoder["output_size"],
        "heads": encoder["attention_heads"],
        "feedforward": encoder["linear_units"],
        "layers": encoder["num_blocks"],
        "channels": estimator["channels"][0],
        "estimator_heads": estimator["num_heads"],
        "head_dim": estimator["attention_head_dim"],
        "blocks": estimator["n_blocks"],
        "middle": estimator["num_mid_blocks"],
        "guidance": flow["decoder"]["cfm_params"]["content"]["inference_cfg_rate"],
    }
    vocoder = {
        "inputs": hift["in_channels"],
        "width": hift["base_channels"],
        "harmonics": hift["nb_harmonics"],
        "rates": hift["upsample_rates"],
        "kernels": hift["upsample_kernel_sizes"],
        "fft_size": hift["istft_params"]["n_fft"],
        "hop": hift["istft_params"]["hop_len"],
        "residual_kernels": hift["resblock_kernel_sizes"],
        "residual_dilations": hift["resblock_dilation_sizes"],
        "source_kernels": hift["source_resblock_kernel_sizes"],
        "source_dilations": hift["source_resblock_dilation_sizes"],
        "amplitude": hift["nsf_alpha"],
        "noise": hift["nsf_sigma"],
        "voiced": float(hift["nsf_voiced_threshold"]),
        "pitch_width": hift["f0_predictor"]["cond_channels"],
    }
    return {"sample_rate": told["sample_rate"], "flow": sizes, "vocoder": vocoder}


def _ears(tokens: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """The sizes of the tokenizer's encoder, by its tensors."""
    layers = [int(name.split(".")[2]) for name in tokens if name.startswith("encoder.blocks.")]
    try:
        width, mels, _ = tokens["encoder.conv1.weight"].shape
        hidden = len(tokens["encoder.blocks.0.mlp.0.weight"])
        memory = tokens["encoder.blocks.0.attn.fsmn_block.weight"].shape[-1]
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: no S3 tokenizer whose nodes have their names: {error}") from None
    sizes = {"mels": mels, "width": width, "hidden": hidden, "heads": width // HEAD, "memory": memory}
    return {"kind": "s3", "layers": 1 + max(layers), **sizes}


def s3_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a published `speech_tokenizer_v1.onnx` or `_v2.onnx`, as the package s3tokenizer names them.
    Raises `CheckpointError`."""
    content = read_onnx(path)
    found: dict[str, Tensor] = {}
    convolutions = iter(("encoder.conv1", "encoder.conv2"))
    for node in content.nodes:
        own = [content.tensors[name] for name in node.inputs if name in content.tensors]
        if not own:
            continue
        part = PARTS.match(node.name)
        if part is not None:
            _take(found, f"encoder.blocks.{part[1]}.{part[2].replace('/', '.').replace('mlp.mlp', 'mlp')}", node, own)
        elif node.operator == "Conv" and len(own) == 2:
            name = next(convolutions, None)
            if name is not None:
                found[f"{name}.weight"], found[f"{name}.bias"] = own
        elif node.name.endswith("_codebook/Pow_1"):
            found["quantizer._codebook.embed"] = own[0].t().contiguous()
    places = content.tensors.get("encoders.positional_embedding")
    if places is not None:
        found["encoder.positional_embedding"] = places
    bias, down = content.tensors.get("quantizer.project_in.bias"), fed_by(content, "quantizer.project_in.bias")
    if bias is not None and down is not None:
        found["quantizer._codebook.project_down.bias"] = bias
        found["quantizer._codebook.project_down.weight"] = down.t().contiguous()
    return {name: tensor.to(torch.float32) for name, tensor in found.items()}


def _take(found: dict[str, Tensor], name: str, node: Any, own: list[Tensor]) -> None:
    """The weights of a block's part that a node uses: of a map, a norm whole or in pieces, a convolution."""
    if node.operator == "LayerNormalization" and len(own) == 2:
        found[f"{name}.weight"], found[f"{name}.bias"] = own
    elif node.operator == "MatMul":
        found[f"{name}.weight"] = own[0].t().contiguous()
    elif node.operator == "Conv" or (node.operator == "Mul" and own[0].numel() > 1):
        found[f"{name}.weight"] = own[0]
    elif node.operator == "Add" and own[0].numel() > 1:
        found[f"{name}.bias"] = own[0]
