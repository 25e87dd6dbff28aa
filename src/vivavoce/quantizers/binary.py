"""Binary quantization without a codebook to look up: each dimension gives one bit, its sign.

Sources: lookup-free quantization (LFQ; Yu et al., arXiv:2310.05737, section 3.1) and binary spherical quantization
(BSQ; Zhao et al., arXiv:2406.07548), which has the points and the codes on the unit sphere; FocalCodec
(arXiv:2502.04465) has 13 bits of it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import RequestError
from vivavoce.nn.streaming import lengths_of, valid, zero_padding
from vivavoce.quantizers.base import Quantized, Quantizer, health

TIE = 1e-5  # of the norm of a point: a value nearer to zero has no certain sign
FRAMES = 2048  # whose probabilities of all codes are in memory at a time


class BinaryQuantizer(Quantizer):
    """Latents [B, T, width] -> codes [B, 1, T] of `bits` bits; the first dimension has the highest one, 1 if positive.

    spherical: points are brought to length 1 and their codes are corners of a cube inside the unit sphere (BSQ); else
    points stay as they are and the corners are -1 and 1 (LFQ). If `width` is not `bits`, linear maps (with bias) lead
    in and out. `loss`: `entropy` times (entropy of each point's soft assignment - `diversity` times the entropy of
    their mean), where the assignment is a softmax over all codes of 2 x `sharpness` x (point . code); and `commitment`
    times the squared distance of the points to their codes. `joint` bits at a time (default: all) are assigned
    together: the entropies of such groups are added, since 2^bits probabilities do not fit for many bits. With 1 the
    first entropy is still exact (a point's bits are independent), the second an upper bound (BSQ, equation 10).
    Gradients pass the sign straight through.
    """

    def __init__(
        self,
        width: int,
        bits: int = 13,
        spherical: bool = True,
        entropy: float = 0.1,
        diversity: float = 1.0,
        sharpness: float = 100.0,
        commitment: float = 0.0,
        joint: int | None = None,
    ):
        super().__init__()
        if not 1 <= bits <= 62:
            raise RequestError(f"{bits} bits: give 1 to 62")
        if joint is not None and not 1 <= joint <= bits:
            raise RequestError(f"joint={joint}: from 1 to all {bits} bits together")
        self.width, self.bits, self.spherical = width, bits, spherical
        self.entropy, self.diversity, self.sharpness, self.commitment = entropy, diversity, sharpness, commitment
        self.joint = min(bits, 13) if joint is None else joint
        self.codebook_sizes = (1 << bits,)
        self.input_projection = nn.Linear(width, bits) if bits != width else nn.Identity()
        self.output_projection = nn.Linear(bits, width) if bits != width else nn.Identity()

    @property
    def corner(self) -> float:
        """What a bit stands for, up to its sign."""
        return self.bits**-0.5 if self.spherical else 1.0

    def forward(self, latents, lengths=None, codebooks=None):
        self.check_latents(latents)
        self.levels_used(codebooks)
        inside = valid(lengths_of(latents, lengths), latents.shape[1])
        with torch.autocast(latents.device.type, enabled=False):
            points = self.points(zero_padding(latents.float(), lengths))
            if not bool(points.isfinite().all()):
                raise RequestError("latents are not finite (NaN or infinite): they have no signs")
            corners = self._corners(points > 0)
            y = zero_padding(self.output_projection(points + (corners - points).detach()), lengths)
            loss = self._loss(points[inside], corners[inside]) if self.training else points.new_zeros(())
            codes = self._index(points > 0)
        usage, spread = health(codes[inside], self.codebook_size, self.training)
        return Quantized(y.to(latents.dtype), (codes * inside)[:, None], loss, usage[None], spread[None])

    def points(self, latents: Tensor) -> Tensor:
        """Latents [..., width] -> points [..., bits] whose signs are taken."""
        z = self.input_projection(latents)
        return F.normalize(z, dim=-1) if self.spherical else z

    def _corners(self, positive: Tensor) -> Tensor:
        return (2.0 * positive - 1) * self.corner

    def _index(self, positive: Tensor) -> Tensor:
        return (positive.long() << self._places(positive)).sum(-1)

    def _places(self, like: Tensor) -> Tensor:
        return torch.arange(self.bits - 1, -1, -1, device=like.device)

    def _loss(self, points: Tensor, corners: Tensor) -> Tensor:
        """Of points [N, bits]; 0 where there are none."""
        if not len(points):
            return points.new_zeros(())
        loss = self.commitment * F.mse_loss(points, corners)
        if not self.entropy:
            return loss
        each, spread = points.new_zeros(()), points.new_zeros(())
        for group in points.split(self.joint, dim=1):
            mean = points.new_zeros(1 << group.shape[1])
            for part in group.split(FRAMES):
                shares = self._assignments(part)
                each = each + entropies(shares).sum() / len(points)
                mean = mean + shares.sum(0) / len(points)
            spread = spread + entropies(mean)
        return loss + self.entropy * (each - self.diversity * spread)

    def _assignments(self, points: Tensor) -> Tensor:
        """Probabilities of all codes of a few bits [N, b] -> [N, 2^b]."""
        size = points.shape[1]
        numbers = torch.arange(1 << size, device=points.device)
        bits = (numbers[:, None] >> torch.arange(size - 1, -1, -1, device=points.device)) & 1
        return (2 * self.sharpness * points @ self._corners(bits).T).softmax(-1)

    @torch.no_grad()
    def encode(self, latents, lengths=None, codebooks=None):
        self.check_latents(latents)
        self.levels_used(codebooks)
        with torch.autocast(latents.device.type, enabled=False):
            codes = self._index(self.points(latents.float()) > 0)
        return (codes * valid(lengths_of(latents, lengths), latents.shape[1]))[:, None]

    @torch.no_grad()
    def decode(self, codes):
        self.check_codes(codes)
        bits = (codes[:, 0, :, None] >> self._places(codes)) & 1
        with torch.autocast(codes.device.type, enabled=False):
            return self.output_projection(self._corners(bits))

    @torch.no_grad()
    def ties(self, latents, codes=None):
        """Where a value is so near to zero that rounding decides its sign."""
        self.check_latents(latents)
        with torch.autocast(latents.device.type, enabled=False):
            z = self.input_projection(latents.float()).double()
        return (z.abs() < TIE * z.norm(dim=-1, keepdim=True).clamp(min=1e-9)).any(-1)[:, None]


def entropies(shares: Tensor) -> Tensor:
    """-sum p log p over the last dimension, in nats; what is below 1e-5 counts as if it were that in the logarithm."""
    return -(shares * shares.clamp(min=1e-5).log()).sum(-1)
