"""Quantizers by name, as recipes name them."""

from collections.abc import Mapping
from typing import Any

from vivavoce.errors import RecipeError
from vivavoce.quantizers.base import Quantizer
from vivavoce.quantizers.residual import ResidualVectorQuantizer, VectorQuantizer
from vivavoce.quantizers.scalar import FiniteScalarQuantizer
from vivavoce.quantizers.split import SplitResidualVectorQuantizer

QUANTIZERS: dict[str, type[Quantizer]] = {
    "vq": VectorQuantizer,
    "rvq": ResidualVectorQuantizer,
    "split_rvq": SplitResidualVectorQuantizer,
    "fsq": FiniteScalarQuantizer,
}


def build_quantizer(config: Mapping[str, Any]) -> Quantizer:
    """Build from `{"kind": "rvq", "width": 128, ...}`: the other keys are the class's arguments.

    Raises `RecipeError` naming what is unknown or missing.
    """
    options = dict(config)
    kind = options.pop("kind", None)
    if kind not in QUANTIZERS:
        raise RecipeError(f"quantizer.kind: {kind!r} is none of {', '.join(QUANTIZERS)}")
    try:
        return QUANTIZERS[kind](**options)
    except TypeError as error:
        raise RecipeError(f"quantizer ({kind}): {error}") from None
