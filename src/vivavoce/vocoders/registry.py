"""Vocoders by name, as recipes name them."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from vivavoce.schema.parts import build_part, tuples


def _unit_hifigan(generator: Mapping[str, Any] | None = None, **sizes: Any) -> nn.Module:
    from vivavoce.vocoders.hifigan import HiFiGANConfig
    from vivavoce.vocoders.unit_hifigan import UnitHiFiGAN, UnitHiFiGANConfig

    return UnitHiFiGAN(UnitHiFiGANConfig(**tuples(sizes), generator=HiFiGANConfig(**tuples(generator or {}))))


def _hifigan(**sizes: Any) -> nn.Module:
    from vivavoce.vocoders.hifigan import HiFiGAN, HiFiGANConfig

    return HiFiGAN(HiFiGANConfig(**tuples(sizes)))


def _bigvgan(**sizes: Any) -> nn.Module:
    from vivavoce.vocoders.bigvgan import BigVGAN
    from vivavoce.vocoders.hifigan import HiFiGANConfig

    return BigVGAN(HiFiGANConfig(**tuples(sizes)))


def _vocos(**sizes: Any) -> nn.Module:
    from vivavoce.vocoders.vocos import Vocos, VocosConfig

    return Vocos(VocosConfig(**sizes))


VOCODERS: dict[str, Callable[..., nn.Module]] = {
    "unit_hifigan": _unit_hifigan,
    "hifigan": _hifigan,
    "bigvgan": _bigvgan,
    "vocos": _vocos,
}


def build_vocoder(config: Mapping[str, Any]) -> nn.Module:
    """Build from `{"kind": "unit_hifigan", "units": 100, "generator": {...}}`: the other keys are the sizes.

    Raises `RecipeError` naming what is unknown or cannot be.
    """
    return build_part("vocoder", VOCODERS, config)
