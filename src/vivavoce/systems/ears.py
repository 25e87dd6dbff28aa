"""What a full-duplex system hears with, frame by frame: an encoder's vectors, or the codes of a codec.

    state = ear.start(rows)
    heard, state = ear.hear(frames, state, active)      # frames [rows, frame_size]; active [rows] bool, None: all

An ear knows no network of its own: the modules belong to the system.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from vivavoce.nn.streaming import State, Streaming


class Ear(Protocol):
    """frame_size: samples of a frame, at `sample_rate` Hz. vectors: whether it hears vectors (else ids)."""

    frame_size: int
    sample_rate: int
    vectors: bool

    def start(self, rows: int) -> State:
        """State of `rows` rows that have heard nothing."""
        ...

    def hear(self, frames: Tensor, state: State, active: Tensor | None) -> tuple[Tensor, State]:
        """The next frames [rows, frame_size] -> what stands in the grid for them: vectors [rows, width], or ids
        [rows, slots]. Rows that are not `active` are held; what is given for them is padding. `state` is used up."""
        ...

    def features(self, samples: Tensor) -> Tensor:
        """Vectors [B, T, width] of whole signals [B, samples]."""
        ...


class VectorEar:
    """An encoder that streams; its vectors stand in the grid."""

    vectors = True

    def __init__(self, encoder: Streaming, sample_rate: int):
        self.encoder, self.sample_rate, self.frame_size = encoder, sample_rate, int(encoder.hop)

    def start(self, rows: int) -> State:
        """As `Ear` says."""
        return self.encoder.initial_state(rows)

    def hear(self, frames: Tensor, state: State, active: Tensor | None) -> tuple[Tensor, State]:
        """As `Ear` says."""
        lengths = None if active is None else active.long() * self.frame_size
        heard, after = self.encoder.step(frames[..., None], state, lengths)
        if heard.shape[1] == 0:  # nobody is active
            heard = heard.new_zeros(frames.shape[0], 1, heard.shape[2])
        return heard[:, 0], after

    def features(self, samples: Tensor) -> Tensor:
        """As `Ear` says."""
        return self.encoder(samples[..., None])


class CodeEar:
    """A codec whose codes stand in the grid, level k `delays[k]` columns late (acoustic delay)."""

    vectors = False

    def __init__(self, codec: Any, delays: Sequence[int]):
        self.codec, self.delays = codec, list(delays)
        self.sample_rate, self.frame_size = int(codec.sample_rate), int(codec.hop)

    def start(self, rows: int) -> State:
        """As `Ear` says."""
        state = State(codec=self.codec.encoder_state(rows))
        device = state["codec"].emitted.device
        shape = (rows, len(self.delays), max(self.delays))
        state["late"] = torch.full(shape, -1, dtype=torch.int64, device=device)  # codes to come, the next one last
        state["emitted"] = state["codec"].emitted
        return state

    def hear(self, frames: Tensor, state: State, active: Tensor | None) -> tuple[Tensor, State]:
        """As `Ear` says; an id is -1 where a level has none yet."""
        lengths = None if active is None else active.long() * self.frame_size
        codes, after = self.codec.encode_step(frames[:, None], state["codec"], lengths, consume=True)
        if codes.shape[2] == 0:  # nobody is active
            codes = codes.new_zeros(*codes.shape[:2], 1)
        line = torch.cat([state["late"], codes[..., :1]], dim=2)
        newest = line.shape[2] - 1
        heard = torch.stack([line[:, k, newest - delay] for k, delay in enumerate(self.delays)], dim=1)
        late = line[..., 1:]
        if active is not None:
            late = torch.where(active[:, None, None], late, state["late"])
        return heard, State(codec=after, late=late, emitted=after.emitted)

    def features(self, samples: Tensor) -> Tensor:
        """As `Ear` says: the codec's latents before they become codes."""
        return self.codec.encode_latents(samples[:, None])
