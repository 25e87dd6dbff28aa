"""Quantizers by name, as recipes name them."""

from collections.abc import Mapping
from typing import Any

from vivavoce.quantizers.base import Quantizer
from vivavoce.quantizers.binary import BinaryQuantizer
from vivavoce.quantizers.domains import DomainVectorQuantizer
from vivavoce.quantizers.factorized import FactorizedResidualVectorQuantizer
from vivavoce.quantizers.factors import FactorQuantizer
from vivavoce.quantizers.frozen import FrozenVocabularyQuantizer
from vivavoce.quantizers.grids import ResidualScalarQuantizer, ScalarQuantizer
from vivavoce.quantizers.grouped import GroupedResidualVectorQuantizer
from vivavoce.quantizers.grouped_fsq import GroupedFiniteScalarQuantizer
from vivavoce.quantizers.masked_channels import MaskedChannelVectorQuantizer
from vivavoce.quantizers.multi_scale import MultiScaleVectorQuantizer
from vivavoce.quantizers.normal import NormalVectorQuantizer
from vivavoce.quantizers.ordered import OrderedProductQuantizer
from vivavoce.quantizers.residual import ResidualVectorQuantizer, VectorQuantizer
from vivavoce.quantizers.scalar import FiniteScalarQuantizer
from vivavoce.quantizers.sim_vq import SimVectorQuantizer
from vivavoce.quantizers.spherical import GroupedSphericalQuantizer
from vivavoce.quantizers.split import SplitResidualVectorQuantizer
from vivavoce.quantizers.variational import VariationalResidualVectorQuantizer
from vivavoce.schema.parts import build_part

QUANTIZERS: dict[str, type[Quantizer]] = {
    "vq": VectorQuantizer,
    "rvq": ResidualVectorQuantizer,
    "split_rvq": SplitResidualVectorQuantizer,
    "factorized_rvq": FactorizedResidualVectorQuantizer,
    "multi_scale_rvq": MultiScaleVectorQuantizer,
    "frozen_rvq": FrozenVocabularyQuantizer,
    "ordered_pq": OrderedProductQuantizer,
    "grouped_rvq": GroupedResidualVectorQuantizer,
    "grouped_fsq": GroupedFiniteScalarQuantizer,
    "masked_channel_rvq": MaskedChannelVectorQuantizer,
    "normal_vq": NormalVectorQuantizer,
    "variational_rvq": VariationalResidualVectorQuantizer,
    "domain_vq": DomainVectorQuantizer,
    "sim_vq": SimVectorQuantizer,
    "spherical_rvq": GroupedSphericalQuantizer,
    "fsq": FiniteScalarQuantizer,
    "factors": FactorQuantizer,
    "binary": BinaryQuantizer,
    "scalar": ScalarQuantizer,
    "residual_fsq": ResidualScalarQuantizer,
}


def build_quantizer(config: Mapping[str, Any]) -> Quantizer:
    """Build from `{"kind": "rvq", "width": 128, ...}`: the other keys are the class's arguments.

    Raises `RecipeError` naming what is unknown or missing.
    """
    return build_part("quantizer", QUANTIZERS, config)
