"""Quantizers: frames to codes and back, one interface, float32 inside."""

from vivavoce.quantizers.base import Quantized, Quantizer
from vivavoce.quantizers.factorized import FactorizedResidualVectorQuantizer
from vivavoce.quantizers.kmeans import kmeans, minibatch_kmeans
from vivavoce.quantizers.multi_scale import MultiScaleVectorQuantizer
from vivavoce.quantizers.nearest import nearest, ties
from vivavoce.quantizers.registry import QUANTIZERS, build_quantizer
from vivavoce.quantizers.residual import ResidualVectorQuantizer, VectorQuantizer
from vivavoce.quantizers.scalar import FiniteScalarQuantizer
from vivavoce.quantizers.split import SplitResidualVectorQuantizer

__all__ = [
    "QUANTIZERS",
    "FactorizedResidualVectorQuantizer",
    "FiniteScalarQuantizer",
    "MultiScaleVectorQuantizer",
    "Quantized",
    "Quantizer",
    "ResidualVectorQuantizer",
    "SplitResidualVectorQuantizer",
    "VectorQuantizer",
    "build_quantizer",
    "kmeans",
    "minibatch_kmeans",
    "nearest",
    "ties",
]
