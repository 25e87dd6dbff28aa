"""Codec directories: `codec.yaml` (what it is built from) and `model.safetensors`. What `save` writes, `load` takes."""

from pathlib import Path

import yaml
from safetensors.torch import save_file

from vivavoce.codecs.codec import Codec
from vivavoce.codecs.registry import codec_of, config_of
from vivavoce.errors import CheckpointError, RecipeError, RequestError
from vivavoce.nn.weights import load_module, read_safetensors, written_whole

CONFIG, WEIGHTS = "codec.yaml", "model.safetensors"


def save_codec(codec: Codec, directory: str | Path) -> None:
    """Write a codec directory, each file under a temporary name first. `RequestError` if it has no configuration."""
    options = config_of(codec)
    if options is None:
        raise RequestError("this codec was not built from a configuration; make it by build_codec to save it")
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    options["use_codebooks"] = codec.codebooks
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in codec.state_dict().items()}
    with written_whole(folder / CONFIG) as text, written_whole(folder / WEIGHTS) as weights:
        text.write_text(yaml.safe_dump(options, sort_keys=False, width=120), encoding="utf-8")
        save_file(tensors, weights, metadata={"format": "pt"})


def load_codec(directory: str | Path) -> Codec:
    """A codec from a directory that `save_codec` wrote. `CheckpointError` names what is missing or does not fit."""
    folder = Path(directory)
    try:
        options = dict(yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8")))
        used = options.pop("use_codebooks", None)
        codec = codec_of({"kind": "codec", **options})
        codec.codebooks = codec.codebooks if used is None else used
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecipeError, RequestError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG}: {' '.join(str(error).split())}") from error
    tensors = read_safetensors(folder / WEIGHTS)
    load_module(codec, tensors, f"{folder / WEIGHTS}, beside its {CONFIG},")
    return codec.eval()
