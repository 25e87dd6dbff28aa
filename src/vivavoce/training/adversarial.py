"""Adversarial losses over the outputs of discriminators: a list of (logits, feature maps), one a discriminator.

Each is the mean over discriminators (and their maps), as in AudioCraft, or with `summed` their sum, as in HiFi-GAN and
DAC, whose weights are meant for that. `weights`: of the discriminators (None: 1 each), which their terms are multiplied
by; a mean is then still over their number.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vivavoce.errors import RecipeError

Judgement = Sequence[tuple[Tensor, Sequence[Tensor]]]
Weights = Sequence[float] | None

KINDS = ("hinge", "lsgan", "bounded_hinge")


def discriminator_loss(
    real: Judgement, fake: Judgement, kind: str = "hinge", summed: bool = False, weights: Weights = None
) -> Tensor:
    """What the discriminators minimise.

    hinge, either: max(0, 1 - D(x)) + max(0, 1 + D(x̂)) (arXiv:1705.02894; EnCodec eq. 5); lsgan: (1 - D(x))² + D(x̂)²
    (arXiv:1611.04076; HiFi-GAN, DAC).
    """
    terms = []
    for (r, _), (f, _) in zip(real, fake, strict=True):
        r, f = r.float(), f.float()
        if _checked(kind) != "lsgan":
            terms.append((1 - r).relu().mean() + (1 + f).relu().mean())
        else:
            terms.append((1 - r).square().mean() + f.square().mean())
    return _over(_weighed(terms, weights), summed)


def generator_loss(fake: Judgement, kind: str = "hinge", summed: bool = False, weights: Weights = None) -> Tensor:
    """What the generator minimises.

    hinge: -D(x̂), as in AudioCraft; bounded_hinge: max(0, 1 - D(x̂)) (EnCodec's paper, Vocos); lsgan: (1 - D(x̂))².
    """
    losses = {"hinge": lambda f: -f, "bounded_hinge": lambda f: (1 - f).relu(), "lsgan": lambda f: (1 - f).square()}
    loss = losses[_checked(kind)]
    return _over(_weighed([loss(f.float()).mean() for f, _ in fake], weights), summed)


def feature_matching(
    real: Judgement, fake: Judgement, relative: bool = False, summed: bool = False, weights: Weights = None
) -> Tensor:
    """L1 between feature maps of real and generated sound.

    `relative`: each divided by the mean magnitude of the real map (EnCodec eq. 6). The real maps get no gradient.
    """
    terms = []
    for (_, ours), (_, theirs), weight in zip(real, fake, weights or [1.0] * len(real), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            distance = F.l1_loss(b.float(), a.detach().float())
            if relative:
                distance = distance / a.detach().float().abs().mean().clamp(min=1e-8)
            terms.append(weight * distance)
    return _over(terms, summed)


def _weighed(terms: list[Tensor], weights: Weights) -> list[Tensor]:
    return terms if weights is None else [weight * term for weight, term in zip(weights, terms, strict=True)]


def _over(terms: list[Tensor], summed: bool) -> Tensor:
    whole = torch.stack(terms)
    return whole.sum() if summed else whole.mean()


def _checked(kind: str) -> str:
    if kind not in KINDS:
        raise RecipeError(f"adversarial loss '{kind}': choose one of {', '.join(KINDS)}")
    return kind
