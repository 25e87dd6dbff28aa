"""Adversarial losses over the outputs of discriminators: a list of (logits, feature maps), one a discriminator."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vivavoce.errors import RecipeError

Judgement = Sequence[tuple[Tensor, Sequence[Tensor]]]

KINDS = ("hinge", "lsgan")


def discriminator_loss(real: Judgement, fake: Judgement, kind: str = "hinge") -> Tensor:
    """What the discriminators minimise, the mean over them.

    hinge: max(0, 1 - D(x)) + max(0, 1 + D(x̂)) (arXiv:1705.02894; EnCodec eq. 5); lsgan: (1 - D(x))² + D(x̂)²
    (arXiv:1611.04076; HiFi-GAN, DAC).
    """
    terms = []
    for (r, _), (f, _) in zip(real, fake, strict=True):
        r, f = r.float(), f.float()
        if _checked(kind) == "hinge":
            terms.append((1 - r).relu().mean() + (1 + f).relu().mean())
        else:
            terms.append((1 - r).square().mean() + f.square().mean())
    return torch.stack(terms).mean()


def generator_loss(fake: Judgement, kind: str = "hinge") -> Tensor:
    """What the generator minimises, the mean over discriminators.

    hinge: -D(x̂), as in AudioCraft (EnCodec's paper has max(0, 1 - D(x̂))); lsgan: (1 - D(x̂))².
    """
    if _checked(kind) == "hinge":
        return torch.stack([-f.float().mean() for f, _ in fake]).mean()
    return torch.stack([(1 - f.float()).square().mean() for f, _ in fake]).mean()


def feature_matching(real: Judgement, fake: Judgement, relative: bool = False) -> Tensor:
    """L1 between feature maps of real and generated sound, the mean over maps and discriminators.

    `relative`: each divided by the mean magnitude of the real map (EnCodec eq. 6). The real maps get no gradient.
    """
    terms = []
    for (_, ours), (_, theirs) in zip(real, fake, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            distance = F.l1_loss(b.float(), a.detach().float())
            terms.append(distance / a.detach().float().abs().mean().clamp(min=1e-8) if relative else distance)
    return torch.stack(terms).mean()


def _checked(kind: str) -> str:
    if kind not in KINDS:
        raise RecipeError(f"adversarial loss '{kind}': choose one of {', '.join(KINDS)}")
    return kind
