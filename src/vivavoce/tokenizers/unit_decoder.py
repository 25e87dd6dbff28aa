"""Speech units from a text and what is known of each of its tokens: a language model of CosyVoice's form.

Source: CosyVoice's language model (arXiv:2407.05407, section 2.2; cosyvoice/llm/llm.py of FunAudioLLM/CosyVoice), with
the second input that TASTE gives it (arXiv:2504.07053, section 2.2; cosyvoice/llm/audio_llm.py of
mtkresearch/TASTE-SpokenLM): text and vectors go through encoders of their own and are weighed into one sequence, before
which the voice stands, and behind which the units.
"""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import RecipeError
from vivavoce.nn.chance import uniform
from vivavoce.nn.chunks import ChunkLayer
from vivavoce.nn.streaming import Chain, Pointwise, join_rows, slice_rows, take_frames, valid

LAYER_EPSILON = 1e-12  # of the layers' norms, as in ESPnet
REAL = ("least", "most")


@dataclass(frozen=True)
class UnitDecoderConfig:
    """Sizes; the defaults are the published ones. vocabulary: of the text; inputs: width of the tokens' vectors; units:
    how many there are; speaker: width of the vector of a voice.

    entry: width of text and vectors before their encoders, of text_layers and vector_layers. layers: of the decoder.
    top_k: so many of the likeliest units may be said (1: the likeliest). least, most: units for each token of text.
    """

    vocabulary: int = 51866
    inputs: int = 1280
    units: int = 4096
    speaker: int = 192
    entry: int = 512
    width: int = 1024
    heads: int = 8
    feedforward: int = 2048
    text_layers: int = 3
    vector_layers: int = 2
    layers: int = 7
    top_k: int = 25
    least: float = 3.0
    most: float = 30.0

    def __post_init__(self):
        for name, value in asdict(self).items():
            if name not in REAL and (not isinstance(value, int) or value < 1):
                raise RecipeError(f"decoder.{name}: {value!r}: a whole number, at least 1")
        if self.width % self.heads or not 0 <= self.least <= self.most:
            raise RecipeError("decoder: width is a multiple of heads, and least is not more than most")


class Enter(nn.Module):
    """x [B, T, inputs] -> [B, T, width]: a linear map, a norm, perhaps a ReLU, times the square root of the width."""

    def __init__(self, inputs: int, width: int, relu: bool = False):
        super().__init__()
        self.linear, self.norm, self.relu = nn.Linear(inputs, width), nn.LayerNorm(width), relu

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.linear(x))
        return (F.relu(y) if self.relu else y) * self.norm.weight.shape[0] ** 0.5


class UnitDecoder(nn.Module):
    """Text with a vector for each token, and a voice -> units, one after another until an end; all layers causal."""

    def __init__(self, config: UnitDecoderConfig):
        super().__init__()
        c = self.config = config
        self.text_table = nn.Embedding(c.vocabulary, c.entry)
        self.text = self._stack(c.entry, c.text_layers, "silu")
        self.text_out = nn.Linear(c.width, c.width)
        self.vector_in = nn.Linear(c.inputs, c.entry)
        self.vector = self._stack(c.entry, c.vector_layers, "silu")
        self.vector_out = nn.Linear(c.width, c.width)
        self.balance = nn.Parameter(torch.ones(2))
        self.marks = nn.Embedding(2, c.width)
        self.speaker = nn.Linear(c.speaker, c.width)
        self.unit_table = nn.Embedding(c.units, c.width)
        self.body = self._stack(c.width, c.layers, "relu")
        self.head = nn.Linear(c.width, c.units + 1)

    def _stack(self, inputs: int, layers: int, activation: str) -> Chain:
        c = self.config
        form = (c.width, c.heads, c.feedforward, 1, None, activation, LAYER_EPSILON)
        return Chain(
            Pointwise(Enter(inputs, c.width, relu=activation == "relu"), c.width),
            *(ChunkLayer(*form, positions="relative") for _ in range(layers)),
            Pointwise(nn.LayerNorm(c.width), c.width),
        )

    @property
    def end(self) -> int:
        """The id that ends what is said."""
        return self.config.units

    def told(self, tokens: Tensor, vectors: Tensor | None, counts: Tensor, speaker: Tensor) -> tuple[Tensor, Tensor]:
        """What stands before the units: [B, N + 3, width], of which [B] are valid.

        tokens [B, N] and their vectors [B, N, inputs] (None: the text alone), of which counts [B] are valid; speaker
        [B, D], zeros for nobody's voice.
        """
        x = self.text_out(self.text(self.text_table(tokens), counts))
        if vectors is not None:
            shares = self.balance.softmax(0)
            x = shares[0] * self.vector_out(self.vector(self.vector_in(vectors), counts)) + shares[1] * x
        begin, turn = (mark.expand(len(tokens), 1, -1) for mark in self.marks.weight)
        voice = self.speaker(F.normalize(speaker.to(x.dtype), dim=-1))[:, None]
        once = torch.ones_like(counts)
        return join_rows([(torch.cat([begin, voice], dim=1), 2 * once), (x, counts), (turn, once)])

    def scores(self, told: Tensor, size: Tensor, units: Tensor, lengths: Tensor) -> Tensor:
        """Logits [B, T + 1, units + 1] of units [B, T], of which lengths [B] are valid, and of the end behind them."""
        x, total = join_rows([(told, size), (self.unit_table(units), lengths)])
        return self.head(slice_rows(self.body(x, total), size - 1, units.shape[1] + 1))

    def losses(self, told: Tensor, size: Tensor, units: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Nats a unit, the end among them, and the share of likeliest units that are right: means over all."""
        targets = F.pad(units, (0, 1)).scatter(1, lengths[:, None], self.end)
        inside = valid(lengths + 1, targets.shape[1])
        scores = self.scores(told, size, units, lengths)[inside]
        return F.cross_entropy(scores.float(), targets[inside]), (scores.argmax(-1) == targets[inside]).float().mean()

    @torch.no_grad()
    def say(self, told: Tensor, size: Tensor, least: Tensor, most: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        """Units [B, T] and how many each row says [B]: from `least` [B] to `most` [B]. seed [B]: of each row's chance.

        What a row says does not hang on the others.
        """
        state = self.body.initial_state(len(told), told.device, told.dtype)
        hidden, state = self.body.step(told, state, size)
        last = take_frames(hidden, size[:, None] - 1)
        going, lengths = torch.ones_like(size, dtype=torch.bool), torch.zeros_like(size)
        found: list[Tensor] = []
        for place in range(int(most.max()) if len(most) else 0):
            scores = self.head(last[:, 0]).float()
            scores[:, self.end] = torch.where(place < least, -torch.inf, scores[:, self.end])
            unit = chosen(scores, self.config.top_k, seed, place)
            going = going & (place < most) & (unit != self.end)
            if not bool(going.any()):
                break
            unit = torch.where(going, unit, 0)
            found.append(unit)
            lengths = lengths + going
            hidden, state = self.body.step(self.unit_table(unit)[:, None], state, going.long())
            last = torch.where(going[:, None, None], hidden, last)
        units = torch.stack(found, dim=1) if found else size.new_zeros(len(size), 0)
        return units, lengths


def chosen(scores: Tensor, top_k: int, seed: Tensor, place: int) -> Tensor:
    """A sample [B] of the `top_k` likeliest of logits [B, V], by seeds [B] and the place in what is said."""
    values, ids = scores.topk(min(top_k, scores.shape[1]), dim=-1)
    noise = -torch.log(-torch.log(uniform(seed[:, None], torch.full_like(ids, place), ids)))
    return ids.gather(1, (values + noise).argmax(-1, keepdim=True))[:, 0]
