"""Units as a recipe names them: an encoder, a layer, a number of clusters, and the vocoder that speaks them."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vivavoce.encoders.registry import build_encoder
from vivavoce.encoders.segment_units import SegmentUnits
from vivavoce.encoders.units import UnitTokenizer, rebuilding
from vivavoce.errors import CheckpointError, RecipeError
from vivavoce.hub import local_place
from vivavoce.tokenizers.units import UnitCodec
from vivavoce.vocoders.registry import build_vocoder


def build_units(
    encoder: Mapping[str, Any] | None = None,
    clusters: int = 100,
    layer: int | None = None,
    end: bool = False,
    vocoder: Mapping[str, Any] | None = None,
    centers: str | None = None,
    source: str | None = None,
    int8: str | None = None,
    segments: Mapping[str, Any] | None = None,
    **who: int,
) -> UnitCodec:
    """A `UnitCodec` of an encoder's frames at `layer` and `clusters` centers, with a `vocoder` of as many units.

    centers: a file of k-means centers [clusters, width] (`.npy`, or `.safetensors` with one tensor); without it they
    are random until a phase of `objective: kmeans` has fitted them. segments: the units are of segments (see
    `segment_units`): how they are cut, and `centers`, how many there are that are grouped into the clusters (as many).
    source: a directory that `UnitCodec.save` wrote, in place of all this. end: whether an id beyond the units ends an
    utterance. who: `speaker`, `language` of the vocoder.
    """
    if source is not None:
        if any(each is not None for each in (encoder, vocoder, centers, int8, segments)):
            raise RecipeError("encoder, vocoder, centers, int8, segments beside `source`: they come from there")
        codec = UnitCodec.load(local_place(source, "units", ["units.json", "*.safetensors", "vocoder.json"]), **who)
        codec.end = codec.codebook_size if end else None
        return codec
    if encoder is None:
        raise RecipeError("give an encoder, as encoder: {kind: mfcc}, or a source")
    if not isinstance(clusters, int) or clusters < 1:
        raise RecipeError(f"clusters: {clusters!r}: a whole number, at least 1")
    hearing = build_encoder(encoder)
    cut = dict(segments or {})
    count = cut.pop("centers", clusters)
    if not isinstance(count, int) or count < clusters:
        raise RecipeError(f"segments.centers: {count!r}: a whole number, at least as many as clusters ({clusters})")
    points = torch.randn(count, hearing.width) if centers is None else read_centers(centers)
    if len(points) != count:
        raise RecipeError(f"centers: {centers} holds {len(points)}, and the recipe says {count}")
    if segments is None:
        units = UnitTokenizer(hearing, points, layer, dict(encoder), int8=int8)
    else:
        groups = torch.arange(count) % clusters
        units = SegmentUnits(hearing, points, groups, layer, dict(encoder), int8=int8, cut=cut)
    voice = None
    if vocoder is not None:
        voice = build_vocoder({"kind": "unit_hifigan", **vocoder, "units": clusters})
    return UnitCodec(units, voice, end=end, **who)  # type: ignore[arg-type]


def read_centers(place: str | Path) -> torch.Tensor:
    """Centers [clusters, width] float32 of a `.npy` or `.safetensors` file; raises `CheckpointError`.

    Of a scikit-learn model, as fairseq publishes them: `numpy.save("km.npy", joblib.load("km.bin").cluster_centers_)`.
    """
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(place)
    try:
        if path.suffix == ".npy":
            found = torch.from_numpy(np.load(path, allow_pickle=False))
        else:
            (found,) = load_file(path).values()
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path}: no file of centers: {str(error).splitlines()[0]}") from error
    if found.dim() != 2 or not bool(found.isfinite().all()):
        raise CheckpointError(f"{path}: {tuple(found.shape)}: finite centers [clusters, width] expected")
    return found.float()


def self_contained(codec: UnitCodec, options: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's options of units, with the sizes of what they named by a path or a hub id in its place."""
    encoder = options.get("encoder") or {}
    if not (options.get("source") or options.get("centers") or encoder.get("source")):
        return dict(options)
    who = {name: value for name, value in options.items() if name in ("speaker", "language")}
    found = {
        "encoder": rebuilding(codec.units.encoder, codec.units.config or encoder),
        "clusters": codec.codebook_size,
        "layer": codec.units.layer,
        "end": codec.end is not None,
    }
    if codec.units.int8:
        found["int8"] = codec.units.int8
    if isinstance(codec.units, SegmentUnits):
        found["segments"] = {**codec.units.about()["segments"], "centers": len(codec.units.centers)}
    if codec.vocoder is not None:
        found["vocoder"] = asdict(codec.vocoder.config)
    return {**found, **who}
