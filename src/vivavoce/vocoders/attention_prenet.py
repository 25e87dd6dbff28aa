"""Attention over all frames between residual blocks, before a Vocos: WavTokenizer's addition to it."""

import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.nn.over_time import BetweenResiduals, TimeNorm
from vivavoce.nn.streaming import valid


class AttentionPrenet(BetweenResiduals):
    """Frames [B, T, width] -> [B, T, width]: two residual blocks, one head of attention, two more blocks, a norm.

    All norms are over time (WavTokenizer, arXiv:2408.16532, section 3.3; decoder/models.py, `pos_net`). There is no
    position: the order of frames is known by the blocks' convolutions.
    """

    def __init__(self, width: int, groups: int = 32):
        super().__init__(width, groups)
        self.norm, self.last = TimeNorm(width, groups), TimeNorm(width, groups)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def middle(self, x, lengths):
        return x + self.attend(self.norm(x, lengths), lengths)

    def respond(self, x, lengths):
        return self.last(super().respond(x, lengths), lengths)

    def attend(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x [B, T, width] -> what every frame takes from all others of its row, [B, T, width]."""
        query, key, value = (part[:, None] for part in self.qkv(x).chunk(3, dim=-1))
        mask = None
        if bool((lengths < x.shape[1]).any()):
            mask = valid(lengths.clamp(min=1), x.shape[1])[:, None, None]
        return self.out(F.scaled_dot_product_attention(query, key, value, attn_mask=mask)[:, 0])
