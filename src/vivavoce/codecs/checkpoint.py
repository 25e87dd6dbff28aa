"""Codec directories: `codec.yaml` (what it is built from) and `model.safetensors`. What `save` writes, `load` takes."""

import hashlib
import json
from pathlib import Path

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vivavoce.codecs.build import CodecConfig, build_codec
from vivavoce.codecs.codec import Codec
from vivavoce.errors import CheckpointError, RecipeError, RequestError
from vivavoce.nn.weights import load_module, written_whole

CONFIG, WEIGHTS = "codec.yaml", "model.safetensors"


def fingerprint(codec: Codec) -> str:
    """Identity of a codec's codes: 16 hex digits of its configuration, its codebooks in use and its weights."""
    digest = hashlib.sha256()
    options = codec.config.options() if isinstance(codec.config, CodecConfig) else {}
    options["use_codebooks"] = codec.codebooks
    digest.update(json.dumps(options, sort_keys=True).encode())
    for name, tensor in sorted(codec.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def save_codec(codec: Codec, directory: str | Path) -> None:
    """Write a codec directory, each file under a temporary name first. `RequestError` if it has no configuration."""
    if not isinstance(codec.config, CodecConfig):
        raise RequestError("this codec was not built from a configuration; make it by build_codec to save it")
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    options = {**codec.config.options(), "use_codebooks": codec.codebooks}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in codec.state_dict().items()}
    with written_whole(folder / CONFIG) as text, written_whole(folder / WEIGHTS) as weights:
        text.write_text(yaml.safe_dump(options, sort_keys=False, width=120), encoding="utf-8")
        save_file(tensors, weights, metadata={"format": "pt", "fingerprint": fingerprint(codec)})


def load_codec(directory: str | Path) -> Codec:
    """A codec from a directory that `save_codec` wrote. `CheckpointError` names what is missing or does not fit."""
    folder = Path(directory)
    try:
        options = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
        codec = build_codec(options)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecipeError, AttributeError) as error:
        raise CheckpointError(f"{folder / CONFIG}: {' '.join(str(error).split())}") from error
    tensors = read_safetensors(folder / WEIGHTS)
    load_module(codec, tensors, f"{folder / WEIGHTS}, beside its {CONFIG},")
    return codec.eval()


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file; `CheckpointError` if it is missing, cut short, or of another format."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: the weights of the codec are expected there")
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is no safetensors file, or is cut short: {error}") from error


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Tensors of a foreign pickled checkpoint, read by torch's weights-only loading: no code in it runs."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} holds more than weights, or is no checkpoint: {error}".split("\n")[0]) from error
    for key in ("model", "state_dict", "best_state"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors under their names")
    return tensors
