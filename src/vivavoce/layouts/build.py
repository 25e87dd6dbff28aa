"""From a specification to a layout."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from pydantic import BaseModel, ValidationError

from vivavoce.errors import RecipeError, RequestError
from vivavoce.layouts.cells import StreamSpec
from vivavoce.layouts.layout import Layout
from vivavoce.layouts.program import Builder
from vivavoce.layouts.spec import KindSpec

KINDS = {
    "chain-of-modality": "chain:ChainSpec",
    "dedup": "dedup:DedupSpec",
    "delay": "grids:DelaySpec",
    "flat": "flat:FlatSpec",
    "hierarchical": "hierarchical:HierarchicalSpec",
    "interleaved": "interleaved:InterleavedSpec",
    "multi-stream": "grids:MultiStreamSpec",
    "parallel": "grids:ParallelSpec",
    "template": "template:TemplateSpec",
    "text-aligned": "text_aligned:TextAlignedSpec",
    "time-multiplexed": "time_multiplexed:TimeMultiplexedSpec",
}


def kind_of(spec: Mapping[str, Any], streams: Sequence[StreamSpec], path: str = "layout") -> KindSpec:
    """The validated specification of one kind. `multistream` and `multi_stream` mean `multi-stream`."""
    if "kind" not in spec:
        raise RecipeError(f"{path}: no 'kind'; one of {sorted(KINDS)}")
    plain = {name.replace("-", ""): name for name in KINDS}
    name = plain.get(str(spec["kind"]).lower().replace("-", "").replace("_", ""))
    if name is None:
        raise RecipeError(f"{path}.kind: no layout '{spec['kind']}'; one of {sorted(KINDS)}")
    module, model = KINDS[name].split(":")
    kind = getattr(import_module(f"vivavoce.layouts.{module}"), model)
    try:
        return kind(**kind.shorthand({**spec, "kind": name}, [stream.name for stream in streams]))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([path, *[str(part) for part in first["loc"]]])
        raise RecipeError(f"{where}: {first['msg']} (found {first['input']!r})") from error


def build_layout(spec: Mapping[str, Any] | BaseModel, streams: Sequence[StreamSpec]) -> Layout:
    """Build the layout of `spec` ({kind: ..., options}) over `streams`, in whose order they are numbered.

    Errors: RecipeError with the path of what is wrong.
    """
    if len({stream.name for stream in streams}) < len(streams):
        raise RecipeError(f"layout: two streams share a name: {[stream.name for stream in streams]}")
    if isinstance(spec, BaseModel):
        spec = spec.model_dump(exclude_none=True)
    kind = kind_of(spec, streams)
    builder = Builder(tuple(streams), dict(kind.literals), own_lanes=kind.lanes == "own")
    try:
        kind.write(builder)
    except RecipeError:
        raise
    except RequestError as error:
        raise RecipeError(f"layout: {error}") from error
    return Layout(builder.program(kind.positions))
