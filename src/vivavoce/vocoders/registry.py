"""Vocoders by name, as recipes name them."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from vivavoce.errors import RecipeError


def _tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    """YAML's lists, also nested ones, as tuples."""

    def convert(value: Any) -> Any:
        return tuple(convert(item) for item in value) if isinstance(value, list | tuple) else value

    return {key: convert(value) for key, value in options.items()}


def _unit_hifigan(generator: Mapping[str, Any] | None = None, **sizes: Any) -> nn.Module:
    from vivavoce.vocoders.hifigan import HiFiGANConfig
    from vivavoce.vocoders.unit_hifigan import UnitHiFiGAN, UnitHiFiGANConfig

    return UnitHiFiGAN(UnitHiFiGANConfig(**_tuples(sizes), generator=HiFiGANConfig(**_tuples(generator or {}))))


def _hifigan(**sizes: Any) -> nn.Module:
    from vivavoce.vocoders.hifigan import HiFiGAN, HiFiGANConfig

    return HiFiGAN(HiFiGANConfig(**_tuples(sizes)))


def _vocos(**sizes: Any) -> nn.Module:
    from vivavoce.vocoders.vocos import Vocos, VocosConfig

    return Vocos(VocosConfig(**sizes))


VOCODERS: dict[str, Callable[..., nn.Module]] = {
    "unit_hifigan": _unit_hifigan,
    "hifigan": _hifigan,
    "vocos": _vocos,
}


def build_vocoder(config: Mapping[str, Any]) -> nn.Module:
    """Build from `{"kind": "unit_hifigan", "units": 100, "generator": {...}}`: the other keys are the sizes.

    Raises `RecipeError` naming what is unknown or cannot be.
    """
    options = dict(config)
    kind = options.pop("kind", None)
    if kind not in VOCODERS:
        raise RecipeError(f"vocoder.kind: {kind!r} is none of {', '.join(VOCODERS)}")
    try:
        return VOCODERS[kind](**options)
    except TypeError as error:
        raise RecipeError(f"vocoder ({kind}): {error}") from None
