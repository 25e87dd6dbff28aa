"""Product quantization by Gumbel softmax: entries are drawn while they learn (arXiv:2006.11477, section 2)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import RequestError


@dataclass
class Chosen:
    """Vectors [B, T, D] chosen for frames, codes [B, groups, T] int64, and the perplexity of what is chosen, summed
    over the groups: of the mean probabilities in training, else of the codes themselves."""

    vectors: Tensor
    codes: Tensor
    perplexity: Tensor


class GumbelQuantizer(nn.Module):
    """Frames [B, T, inputs] -> one of `entries` vectors in each of `groups`, side by side [B, T, width].

    In training entry v is chosen with probability proportional to exp(logit / temperature) (the hard choice goes
    forward, the soft one's gradient back); else the likeliest. As transformers' Wav2Vec2GumbelVectorQuantizer.
    """

    def __init__(self, inputs: int, width: int, groups: int = 2, entries: int = 320, temperature: float = 2.0):
        super().__init__()
        if width % groups:
            raise RequestError(f"a width of {width} cannot be shared by {groups} groups")
        self.groups, self.entries, self.temperature = groups, entries, temperature
        self.vectors = nn.Parameter(torch.rand(1, groups * entries, width // groups))
        self.logits = nn.Linear(inputs, groups * entries)
        nn.init.normal_(self.logits.weight)
        nn.init.zeros_(self.logits.bias)

    def forward(self, frames: Tensor, where: Tensor | None = None) -> Chosen:
        """where [B, T] bool: the frames that the perplexity is of (None: all)."""
        batch, size, _ = frames.shape
        logits = self.logits(frames).view(batch * size * self.groups, self.entries)
        soft = logits.view(batch * size, self.groups, self.entries).float().softmax(-1)
        if self.training:
            hard = F.gumbel_softmax(logits.float(), tau=self.temperature, hard=True).to(logits)
            counted = soft
        else:
            hard = F.one_hot(logits.argmax(-1), self.entries).to(logits)
            counted = hard.view(soft.shape).float()
        kept = counted if where is None else counted[where.flatten()]
        mean = kept.mean(0) if len(kept) else counted.new_zeros(counted.shape[1:])
        perplexity = torch.exp(-(mean * (mean + 1e-7).log()).sum(-1)).sum()
        chosen = hard.view(batch * size, self.groups, self.entries, 1)
        vectors = (chosen * self.vectors.view(1, self.groups, self.entries, -1)).sum(2)
        codes = hard.view(batch, size, self.groups, self.entries).argmax(-1).transpose(1, 2)
        return Chosen(vectors.reshape(batch, size, -1), codes, perplexity)
