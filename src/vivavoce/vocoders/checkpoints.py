"""Unit vocoders on disk: our own directories, SeamlessM4T's (transformers), speech-resynthesis's and fairseq's."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vivavoce.errors import CheckpointError, RecipeError, RequestError
from vivavoce.nn.likeness import unlike
from vivavoce.nn.pairs import Pair, Published, theirs_of, weight_and_bias
from vivavoce.nn.weights import check_asked, load_module, load_part, read_pickle, read_safetensors, written_whole
from vivavoce.pretrained import read_json, read_weights
from vivavoce.schema.parts import tuples
from vivavoce.vocoders.hifigan import HiFiGAN, HiFiGANConfig
from vivavoce.vocoders.unit_hifigan import UnitHiFiGAN, UnitHiFiGANConfig

CONFIG, WEIGHTS = "vocoder.json", "vocoder.safetensors"
# Ours <- theirs, in the order in which they are tried: SeamlessM4T, then speech-resynthesis and fairseq.
_EMBEDDINGS = {
    "unit_embedding": ("unit_embedding", "dict"),
    "speaker_embedding": ("speaker_embedding", "spkr"),
    "language_embedding": ("language_embedding", "lang"),
}
_ALONE = ("hifi_gan.", "dur_predictor.", "unit_embedding.", "speaker_embedding.", "language_embedding.")
_PREDICTOR = {
    "parts.0": ("conv1", "conv1.0"),
    "parts.1.function.1": ("ln1",),
    "parts.2": ("conv2", "conv2.0"),
    "parts.3.function.1": ("ln2",),
    "parts.4.function": ("proj",),
}


# Ours <- theirs.
_SEAMLESS = {
    "units": "unit_hifi_gan_vocab_size",
    "unit_width": "unit_embed_dim",
    "speakers": "vocoder_num_spkrs",
    "speaker_width": "spkr_embed_dim",
    "languages": "vocoder_num_langs",
    "language_width": "lang_embed_dim",
    "duration_kernel": "variance_predictor_kernel_size",
    "duration_dropout": "var_pred_dropout",
    "sample_rate": "sampling_rate",
}
_GENERATOR = {
    "width": "upsample_initial_channel",
    "rates": "upsample_rates",
    "kernels": "upsample_kernel_sizes",
    "residual_kernels": "resblock_kernel_sizes",
    "residual_dilations": "resblock_dilation_sizes",
}


def save_unit_vocoder(vocoder: UnitHiFiGAN, directory: str | Path) -> None:
    """Write `vocoder.json` and `vocoder.safetensors`."""
    from safetensors.torch import save_file

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with written_whole(directory / WEIGHTS) as part:
        save_file({key: value.contiguous() for key, value in vocoder.state_dict().items()}, part)
    text = json.dumps({"kind": "unit_hifigan", **dataclasses.asdict(vocoder.config)}, indent=2)
    with written_whole(directory / CONFIG) as part:
        part.write_text(text + "\n")


def load_unit_vocoder(directory: str | Path, allow_pickle: bool = False) -> UnitHiFiGAN:
    """Read a unit vocoder, in evaluation mode, from a directory that is one of

    - ours (`save_unit_vocoder`);
    - transformers' SeamlessM4T, v1 or v2: the whole model or its code vocoder alone;
    - speech-resynthesis's or fairseq's: config.json beside a pickled generator (`g_*`, `*.pt`), which is read only
      with `allow_pickle`, and then by weights-only loading.
    Raises `CheckpointError`.
    """
    directory = Path(directory)
    if (directory / CONFIG).is_file():
        return _load_ours(directory, read_json(directory / CONFIG))
    config = read_json(directory / "config.json")
    if str(config.get("model_type", "")).startswith("seamless_m4t"):
        return from_seamless(config, _seamless_weights(directory))
    if "num_embeddings" in config:
        return from_resynthesis(config, _pickled(directory, allow_pickle))
    raise CheckpointError(f"{directory}/config.json is neither SeamlessM4T's nor a unit HiFi-GAN's")


def from_seamless(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> UnitHiFiGAN:
    """The code vocoder of a SeamlessM4T config (as a dict) and state dict."""
    state = {key.removeprefix("vocoder."): value for key, value in state.items()}
    widths = config["unit_embed_dim"] + config["spkr_embed_dim"] + config["lang_embed_dim"]
    sizes = UnitHiFiGANConfig(
        **{ours: config[theirs] for ours, theirs in _SEAMLESS.items() if ours != "sample_rate"},
        duration_hidden=config["unit_embed_dim"],
        sample_rate=config.get("sampling_rate", 16000),
        generator=_generator_config(config, widths, config["leaky_relu_slope"]),
    )
    return _fill(UnitHiFiGAN(sizes), state, "hifi_gan.", "upsampler")


def from_resynthesis(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> UnitHiFiGAN:
    """A CodeGenerator of speech-resynthesis or fairseq: its config.json and the "generator" of its checkpoint.

    Pitch and other inputs beside units and speaker are not supported.
    """
    if config.get("f0") or config.get("f0_quantizer") or config.get("f0_quantizer_path"):
        raise CheckpointError("a unit vocoder with pitch input is not supported: only units, durations and speaker")
    width = config["embedding_dim"]
    embedder = config.get("embedder_params")
    predictor = config.get("dur_predictor_params") or {}
    several = bool(config.get("multispkr"))
    sizes = UnitHiFiGANConfig(
        units=config["num_embeddings"],
        unit_width=width,
        speakers=config.get("num_speakers", 200) if several and not embedder else 0,
        speaker_vector=config.get("embedder_dim", 256) if embedder else 0,
        speaker_width=width,
        durations=bool(predictor),
        duration_hidden=predictor.get("var_pred_hidden_dim", 128),
        duration_kernel=predictor.get("var_pred_kernel_size", 3),
        duration_dropout=predictor.get("var_pred_dropout", 0.5),
        sample_rate=config.get("sampling_rate", 16000),
        generator=_generator_config(config, 2 * width if several or embedder else width, 0.1),
    )
    return _fill(UnitHiFiGAN(sizes), state, "", "ups")


def _generator_config(config: Mapping[str, Any], inputs: int, slope: float) -> HiFiGANConfig:
    sizes = {ours: config[theirs] for ours, theirs in _GENERATOR.items()}
    return HiFiGANConfig(inputs=inputs, **tuples(sizes), slope=slope)


def generator_names(generator: HiFiGAN, upsampling: str) -> list[str]:
    """Names that the references give to the convolutions, in the order of `HiFiGAN.convolutions`."""
    config = generator.config
    names, block = ["conv_pre"], 0
    for stage in range(len(config.rates)):
        names.append(f"{upsampling}.{stage}")
        for dilations in config.residual_dilations:
            for i in range(len(dilations)):
                names += [f"resblocks.{block}.convs1.{i}", f"resblocks.{block}.convs2.{i}"]
            block += 1
    return [*names, "conv_post"]


def _fill(vocoder: UnitHiFiGAN, state: Mapping[str, Tensor], prefix: str, upsampling: str) -> UnitHiFiGAN:
    source = Published(fold_weight_norm(state), "the checkpoint")
    load_part(vocoder, source.all(_pairs(vocoder, prefix, upsampling)), "the checkpoint")
    return vocoder.eval()  # type: ignore[return-value]


def _pairs(vocoder: UnitHiFiGAN, prefix: str, upsampling: str) -> Iterator[Pair]:
    own = {id(module): name for name, module in vocoder.named_modules()}
    names = generator_names(vocoder.generator, upsampling)
    for name, convolution in zip(names, vocoder.generator.convolutions()):
        yield from weight_and_bias(own[id(convolution)], f"{prefix}{name}")
    modules: dict[str, tuple[Any, tuple[str, ...]]] = {}
    for ours, names_there in _EMBEDDINGS.items():
        modules[ours] = getattr(vocoder, ours), names_there
    if vocoder.predictor is not None:
        for ours, others in _PREDICTOR.items():
            theirs = tuple(f"dur_predictor.{name}" for name in others)
            modules[f"predictor.{ours}"] = vocoder.predictor.get_submodule(ours), theirs
    for ours, (module, theirs) in modules.items():
        for leaf, _ in module.named_parameters() if module is not None else ():
            yield Pair(f"{ours}.{leaf}", [f"{name}.{leaf}" for name in theirs])


# -- writing --


def transformers_vocoder(vocoder: UnitHiFiGAN) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of a vocoder for transformers' SeamlessM4TCodeHifiGan, without weight normalisation.

    That has speakers and languages by number and a duration predictor: `RequestError` of a vocoder that has not.
    """
    sizes = vocoder.config
    if not (sizes.speakers and sizes.languages and sizes.durations):
        raise RequestError("transformers' unit HiFi-GAN (SeamlessM4T) has speakers and languages by number and a "
                           "duration predictor; this vocoder has not all three")  # fmt: skip
    config = {"model_type": "seamless_m4t", **{theirs: getattr(sizes, ours) for ours, theirs in _SEAMLESS.items()}}
    config |= {theirs: getattr(sizes.generator, ours) for ours, theirs in _GENERATOR.items()}
    config["leaky_relu_slope"] = sizes.generator.slope
    tensors = theirs_of(_pairs(vocoder, "hifi_gan.", "upsampler"), vocoder.state_dict())
    differences = unlike(vocoder, from_seamless(config, tensors))
    if differences:
        raise RequestError(f"transformers' unit HiFi-GAN (SeamlessM4T) is another: {'; '.join(differences[:3])}")
    return config, tensors


def fold_weight_norm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weight-normed parameters (norm over all but the first dimension), old and new naming, as plain weights."""
    plain = dict(state)
    for scale, direction in (("weight_g", "weight_v"), ("parametrizations.weight.original0",
                                                         "parametrizations.weight.original1")):
        for key in [key for key in plain if key.endswith("." + scale)]:
            stem = key.removesuffix(scale)
            g, v = plain.pop(key).float(), plain.pop(stem + direction).float()
            plain[stem + "weight"] = g * v / torch.linalg.vector_norm(v.flatten(1), dim=1).view(-1, 1, 1)
    return plain


def _load_ours(directory: Path, config: dict[str, Any]) -> UnitHiFiGAN:
    from vivavoce.vocoders.registry import build_vocoder

    try:
        vocoder = build_vocoder(config)
    except (RecipeError, RuntimeError) as error:
        raise CheckpointError(f"{directory}: {str(error).splitlines()[0]}") from None
    load_module(vocoder, read_safetensors(directory / WEIGHTS), str(directory / WEIGHTS))
    return vocoder.eval()  # type: ignore[return-value]


def _seamless_weights(directory: Path) -> dict[str, Tensor]:
    """The code vocoder's tensors alone: the whole model has billions more."""
    inner = read_weights(directory, keep=lambda name: name.startswith("vocoder."))
    return inner or read_weights(directory, keep=lambda name: name.startswith(_ALONE))


def _pickled(directory: Path, allow_pickle: bool) -> dict[str, Tensor]:
    files = sorted([*directory.glob("g_*"), *directory.glob("*.pt")])
    if not files:
        raise CheckpointError(f"{directory} has no generator checkpoint (g_* or *.pt)")
    check_asked(files[-1], allow_pickle)
    return read_pickle(files[-1], ["generator"])
