"""Mel frames from speech tokens by conditional flow matching, as a stream: what a chunk sounds like never changes.

Source: CosyVoice 2 (arXiv:2412.10117, section 2.3; cosyvoice/flow/flow_matching.py, flow.py of FunAudioLLM/CosyVoice);
optimal-transport paths: Lipman et al., arXiv:2210.02747; guidance: Voicebox, arXiv:2306.15687, section 3.4. Every
evaluation of the network hears past chunks only, and each step of the solver carries its own memory of them on: so a
stream solves the very equation of the whole signal. (The published code solves it for all frames again with every
chunk.)
"""

import math
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import RecipeError, RequestError
from vivavoce.nn.chance import normal
from vivavoce.nn.streaming import INFINITE, Chain, State, Streaming, lengths_of, take_frames, valid
from vivavoce.vocoders.flow_encoder import TokenEncoder
from vivavoce.vocoders.flow_estimator import FlowEstimator

SIGMA = 1e-6  # what is left of the noise at the end of a path


@dataclass(frozen=True)
class FlowConfig:
    """Sizes; the defaults are CosyVoice 2's. tokens: how many there are; ratio: mel frames a token; speaker: width of
    the vector of a voice.

    width, heads, feedforward, layers, upper, ahead: of the `TokenEncoder`; channels, estimator_heads, head_dim, blocks,
    middle: of the `FlowEstimator`. chunk: tokens that are heard together; left: chunks before that the estimator sees.
    steps: of Euler's solver; guidance: how far away from what is said without tokens and voice. drop: share of the
    training rows that are told neither.
    """

    tokens: int = 6561
    mels: int = 80
    ratio: int = 2
    speaker: int = 192
    width: int = 512
    heads: int = 8
    feedforward: int = 2048
    layers: int = 6
    upper: int = 4
    ahead: int = 3
    chunk: int = 25
    left: int = 2
    channels: int = 256
    estimator_heads: int = 8
    head_dim: int = 64
    blocks: int = 4
    middle: int = 12
    steps: int = 10
    guidance: float = 0.7
    drop: float = 0.2

    def __post_init__(self):
        for name, value in asdict(self).items():
            if name not in ("guidance", "drop", "ahead") and (not isinstance(value, int) or value < 1):
                raise RecipeError(f"flow.{name}: {value!r}: a whole number, at least 1")
        if self.ahead < 0 or self.guidance < 0 or not 0 <= self.drop < 1:
            raise RecipeError("flow: ahead and guidance are not below 0, drop is a share from 0 to below 1")


class FlowMatching(Streaming):
    """Rough mel frames [B, T, mels] -> mel frames [B, T, mels] along the estimator's flow from noise.

    The noise is a hash of the row's `seed` and of place and band. Its state tells the voice [B, mels], zeros for
    nobody's, and the mel frames of a `prompt` [B, P, mels], of which `prompted` [B] stand at the signal's beginning.
    Whole chunks at a time; only the last may be short. At the published size a row's state takes 0.46 GB in float32:
    keys and values of 56 layers, for each step and side.
    """

    def __init__(self, config: FlowConfig):
        super().__init__()
        c = self.config = config
        self.chunk = c.chunk * c.ratio
        self.receptive_field = INFINITE
        self.estimator = FlowEstimator(
            4 * c.mels, c.mels, c.channels, c.estimator_heads, c.head_dim, c.blocks, c.middle, self.chunk, c.left
        )

    @property
    def width(self):
        return self.config.mels

    @property
    def times(self) -> list[float]:
        """Where the solver stands before each step, and at the end: close together at first."""
        return [1 - math.cos(math.pi / 2 * step / self.config.steps) for step in range(self.config.steps + 1)]

    @property
    def sides(self) -> int:
        """Rows of the estimator for each of a signal: told, and told nothing."""
        return 2 if self.config.guidance else 1

    def initial_state(self, batch, device=None, dtype=None):
        home = self.home(device, dtype)
        zero = torch.zeros(batch, dtype=torch.int64, device=home["device"])
        state = State(seed=zero, heard=zero, prompted=zero, emitted=zero)
        state["voice"] = torch.zeros(batch, self.width, **home)
        state["prompt"] = torch.zeros(batch, 0, self.width, **home)
        for step in range(self.config.steps):
            fresh = self.estimator.initial_state(batch * self.sides, **home)
            state[f"step{step}"] = fresh.map(lambda tensor: tensor.unflatten(0, (batch, self.sides)))
        return state

    def step(self, x, state, lengths=None):
        count = lengths_of(x, lengths)
        after = State(state, heard=state["heard"] + count, emitted=count)
        if not x.shape[1]:
            return x, after
        batch, sides = len(x), self.sides
        at = state["heard"][:, None] + torch.arange(x.shape[1], device=x.device)
        told = torch.cat([x, *self.conditions(state["voice"], state["prompt"], state["prompted"], at)], dim=-1)
        told = torch.stack([told, torch.zeros_like(told)][:sides], dim=1).flatten(0, 1)
        rows, times = count.repeat_interleave(sides), self.times
        y = normal(state["seed"][:, None, None], at[..., None], torch.arange(self.width, device=x.device)).to(x.dtype)
        for step, (now, then) in enumerate(pairwise(times)):
            inside = state[f"step{step}"].map(lambda tensor: tensor.flatten(0, 1))
            both = torch.cat([y.repeat_interleave(sides, dim=0), told], dim=-1)
            moment = torch.full((len(both),), now, device=x.device)
            velocity, inside = self.estimator.step(both, moment, inside, rows)
            after[f"step{step}"] = inside.map(lambda tensor: tensor.unflatten(0, (batch, sides)))
            y = y + (then - now) * self.guided(velocity.unflatten(0, (batch, sides)))
        return y, after

    def guided(self, velocity: Tensor) -> Tensor:
        """Velocities [B, sides, T, mels] of both sides -> [B, T, mels]."""
        if velocity.shape[1] == 1:
            return velocity[:, 0]
        return (1 + self.config.guidance) * velocity[:, 0] - self.config.guidance * velocity[:, 1]

    @staticmethod
    def conditions(voice: Tensor, prompt: Tensor, prompted: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """What frames at places [B, T] are told beside the tokens: the voice, and the prompt's frames, each [B, T,
        mels]."""
        said = voice[:, None].expand(-1, at.shape[1], -1)
        if not prompt.shape[1]:
            return said, torch.zeros_like(said)
        given = take_frames(prompt, at.clamp(max=prompt.shape[1] - 1))
        return said, torch.where((at < prompted[:, None])[..., None], given, torch.zeros_like(given))

    def loss(
        self, x: Tensor, target: Tensor, lengths: Tensor, voice: Tensor, prompted: Tensor, whole: bool = False
    ) -> Tensor:
        """Mean squared distance of the estimator's velocity from a straight path's, over valid frames.

        x, target [B, T, mels]: rough and true mel frames of which lengths [B] are valid; voice [B, mels]; prompted [B]:
        so many true frames are told. whole: attention without chunks. Times (as dense as the solver's), noise, and
        which rows are told nothing are drawn from torch's generator.
        """
        batch, c = len(x), self.config
        times = 1 - torch.cos(math.pi / 2 * torch.rand(batch, device=x.device))
        noise = torch.randn_like(target)
        share = times[:, None, None].to(target.dtype)
        noisy = (1 - (1 - SIGMA) * share) * noise + share * target
        at = torch.arange(x.shape[1], device=x.device).expand(batch, -1)
        told = torch.cat([x, *self.conditions(voice, target, prompted, at)], dim=-1)
        told = told * (torch.rand(batch, device=x.device) >= c.drop)[:, None, None]
        state = self.estimator.initial_state(batch, x.device, x.dtype)
        velocity, _ = self.estimator.step(torch.cat([noisy, told], dim=-1), times, state, lengths, whole)
        inside = valid(lengths, x.shape[1])[..., None]
        apart = (velocity - (target - (1 - SIGMA) * noise)).square() * inside
        return apart.sum() / (inside.sum() * c.mels).clamp(min=1)


class TokenToMel(Chain):
    """Embedded tokens [B, T, width] -> mel frames [B, T x ratio, mels]; `embed` gives them.

    `told` puts voice and prompt into a state.
    """

    def __init__(self, config: FlowConfig):
        c = config
        encoder = TokenEncoder(
            c.width, c.heads, c.feedforward, c.layers, c.upper, c.ratio, c.ahead, c.chunk, mels=c.mels
        )
        super().__init__(encoder, FlowMatching(config))
        self.config = config
        self.embedding = nn.Embedding(c.tokens, c.width)
        self.voice = nn.Linear(c.speaker, c.mels)

    @property
    def flow(self) -> FlowMatching:
        """What solves the equation."""
        flow = self.parts[1]
        assert isinstance(flow, FlowMatching)
        return flow

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T] int64, or K at a time [B, T, K], whose vectors are summed -> [B, T, width]."""
        found = self.embedding(tokens)
        return found if tokens.dim() == 2 else found.sum(2)

    def told(
        self,
        state: State,
        speaker: Tensor | None = None,
        prompt: Tensor | None = None,
        prompted: Tensor | None = None,
    ) -> State:
        """A fresh state that knows a voice by its vector [B, speaker], and the mel frames [B, P, mels] (of which
        `prompted` [B] are valid) of the prompt whose tokens come first. Raises `RequestError` for another shape."""
        inside, batch = State(state["1"]), state.batch
        if speaker is not None and tuple(speaker.shape) != (batch, self.config.speaker):
            raise RequestError(f"speaker {tuple(speaker.shape)}: vectors [{batch}, {self.config.speaker}] expected")
        if prompt is not None and (prompt.dim() != 3 or (len(prompt), prompt.shape[2]) != (batch, self.config.mels)):
            raise RequestError(f"prompt {tuple(prompt.shape)}: mel frames [{batch}, P, {self.config.mels}] expected")
        like = inside["voice"]
        if speaker is not None:
            inside["voice"] = self.voices(speaker.to(like))
        if prompt is not None:
            inside["prompt"] = prompt.to(like)
            every = torch.full_like(inside["prompted"], prompt.shape[1])
            inside["prompted"] = every if prompted is None else prompted.to(every)
        return State({**state, "1": inside})

    def voices(self, speaker: Tensor) -> Tensor:
        """Vectors [B, speaker] -> what the estimator is told, [B, mels]; zeros stay nobody's voice."""
        known = (speaker != 0).any(-1, keepdim=True)
        return self.voice(F.normalize(speaker, dim=-1)) * known

    def loss(
        self,
        tokens: Tensor,
        target: Tensor,
        lengths: Tensor,
        speaker: Tensor,
        prompted: Tensor,
        whole: bool = False,
    ) -> Tensor:
        """As `FlowMatching.loss`, of tokens as `embed` takes them and true mel frames [B, T x ratio, mels]; lengths [B]
        in tokens."""
        x = self.parts[0](self.embed(tokens), lengths)
        return self.flow.loss(x, target, lengths * self.config.ratio, self.voices(speaker), prompted, whole)
