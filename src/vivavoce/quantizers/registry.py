"""Quantizers by name, as recipes name them."""

from collections.abc import Mapping
from typing import Any

from vivavoce.quantizers.base import Quantizer
from vivavoce.quantizers.factorized import FactorizedResidualVectorQuantizer
from vivavoce.quantizers.multi_scale import MultiScaleVectorQuantizer
from vivavoce.quantizers.residual import ResidualVectorQuantizer, VectorQuantizer
from vivavoce.quantizers.scalar import FiniteScalarQuantizer
from vivavoce.quantizers.split import SplitResidualVectorQuantizer
from vivavoce.schema.parts import build_part

QUANTIZERS: dict[str, type[Quantizer]] = {
    "vq": VectorQuantizer,
    "rvq": ResidualVectorQuantizer,
    "split_rvq": SplitResidualVectorQuantizer,
    "factorized_rvq": FactorizedResidualVectorQuantizer,
    "multi_scale_rvq": MultiScaleVectorQuantizer,
    "fsq": FiniteScalarQuantizer,
}


def build_quantizer(config: Mapping[str, Any]) -> Quantizer:
    """Build from `{"kind": "rvq", "width": 128, ...}`: the other keys are the class's arguments.

    Raises `RecipeError` naming what is unknown or missing.
    """
    return build_part("quantizer", QUANTIZERS, config)
