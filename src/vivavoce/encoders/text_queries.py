"""What of speech belongs to each token of its text: queries of text over an encoder's frames (TASTE).

Source: TASTE (arXiv:2504.07053, section 2.1; modeling_taste.py and audio_joint_encoder_segmenter.py of
mtkresearch/TASTE-SpokenLM): a small Whisper decoder that reads the transcript. It looks for a token's place by the
encoder's last layer, which knows what is said, and takes from there what a shallow layer has, which knows how.
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from vivavoce.errors import RecipeError
from vivavoce.nn.transformer import Transformer, TransformerConfig


@dataclass(frozen=True)
class TextQueriesConfig:
    """Sizes; the defaults are those of distil-large-v3's decoder. before: ids that stand before every text, of which
    nothing is asked; positions: ids of the longest text, these included."""

    vocabulary: int = 51866
    width: int = 1280
    layers: int = 2
    heads: int = 20
    hidden: int = 5120
    positions: int = 448
    before: tuple[int, ...] = (50258, 50259, 50360, 50364)

    def __post_init__(self):
        object.__setattr__(self, "before", tuple(self.before))
        for name, value in asdict(self).items():
            if name != "before" and (not isinstance(value, int) or value < 1):
                raise RecipeError(f"queries.{name}: {value!r}: a whole number, at least 1")
        if self.width % self.heads or self.longest < 1:
            raise RecipeError("queries: width is a multiple of heads, positions are more than stand before a text")
        if not all(0 <= number < self.vocabulary for number in self.before):
            raise RecipeError(f"queries.before: {list(self.before)}: ids from 0 to {self.vocabulary - 1}")

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return self.positions - len(self.before)


class TextQueries(nn.Module):
    """Tokens [B, N] of text, and frames [B, M, width] of speech -> a vector of each token [B, N, width].

    A token sees those before it and all frames. Two layers of one encoder are given: `keys`, in which a token's place
    is looked for, and `values`, of which its vector is made; the values' matrices begin as identities.
    """

    def __init__(self, config: TextQueriesConfig):
        super().__init__()
        c = self.config = config
        self.table = nn.Embedding(c.vocabulary, c.width)
        nn.init.normal_(self.table.weight, std=0.02)
        self.body = Transformer(
            TransformerConfig.classic(
                c.layers, c.width, c.heads, feedforward=c.hidden, memory=c.width, max_positions=c.positions
            )
        )
        self.norm = nn.LayerNorm(c.width)
        self.take_values_as_they_are()

    @torch.no_grad()
    def take_values_as_they_are(self) -> None:
        """What leads to the values becomes the identity: a shallow layer is nothing that a trained one has known."""
        for layer in self.body.blocks:
            layer.cross.kv.weight[self.config.width :] = torch.eye(self.config.width)
            layer.cross.kv.bias[self.config.width :] = 0

    def forward(self, tokens: Tensor, counts: Tensor, keys: Tensor, values: Tensor, heard: Tensor) -> Tensor:
        """tokens [B, N], of which counts [B] are valid; keys, values [B, M, width], of which heard [B] are."""
        first = torch.tensor(self.config.before, device=tokens.device, dtype=torch.int64).expand(len(tokens), -1)
        x = self.table(torch.cat([first, tokens], dim=1))
        size = first.shape[1]
        y = self.body(x, counts + size, memory=keys, memory_lengths=heard, memory_values=values)
        return self.norm(y[:, size:])


def averaged(x: Tensor, words: Tensor) -> Tensor:
    """x [B, N, D] of tokens, each of which belongs to one of `words` [B, N] -> its word's mean for each [B, N, D]."""
    same = (words[:, :, None] == words[:, None]).to(x.dtype)
    return (same / same.sum(-1, keepdim=True)) @ x
