"""Units to waveform: HiFi-GAN over unit embeddings, with predicted durations, speaker and language.

Polyak et al. 2021 (arXiv:2104.00355; facebookresearch/speech-resynthesis, fairseq's CodeGenerator) and the code
vocoder of SeamlessM4T (arXiv:2308.11596; transformers' SeamlessM4TCodeHifiGan).
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from vivavoce.encoders.units import expand
from vivavoce.errors import RecipeError, RequestError
from vivavoce.nn.streaming import (
    State,
    check_lengths,
    full_precision,
    join_rows,
    lengths_of,
    slice_rows,
    zero_padding,
)
from vivavoce.vocoders.durations import DurationPredictor, to_frames
from vivavoce.vocoders.hifigan import HiFiGAN, HiFiGANConfig


@dataclass(frozen=True)
class UnitHiFiGANConfig:
    """Sizes. A frame of the generator is [language embedding, unit embedding, speaker embedding].

    speakers, languages: how many there are (0: none); speaker_vector: instead of a number, a vector of this width
    names the speaker. durations: whether a predictor is there; its hidden width and kernel. `generator` is made with
    the sum of the widths used as its inputs.
    """

    units: int = 1000
    unit_width: int = 128
    speakers: int = 0
    speaker_width: int = 128
    speaker_vector: int = 0
    languages: int = 0
    language_width: int = 128
    durations: bool = True
    duration_hidden: int = 128
    duration_kernel: int = 3
    duration_dropout: float = 0.5
    sample_rate: int = 16000
    generator: HiFiGANConfig = field(default_factory=HiFiGANConfig)

    def __post_init__(self):
        if self.speakers and self.speaker_vector:
            raise RecipeError("speakers and speaker_vector exclude each other: numbers or vectors")
        object.__setattr__(self, "generator", replace(self.generator, inputs=self.inputs))

    @property
    def inputs(self) -> int:
        """Width of a frame."""
        speaker = self.speaker_width if self.speakers or self.speaker_vector else 0
        return self.unit_width + speaker + (self.language_width if self.languages else 0)


class UnitHiFiGAN(nn.Module):
    """Units [B, N] -> waveform [B, 1, samples] in [-1, 1] at `sample_rate`, `hop` samples a frame.

    A unit lasts as many frames as `durations` [B, N] says; without it, as the predictor says, if there is one, else
    one frame. One computation serves whole signals and streams: `forward` is one `step` and a `flush`. A step's
    waveform is late by the look-ahead of the generator (`lookahead` frames) and of the predictor (2 units).
    """

    def __init__(self, config: UnitHiFiGANConfig):
        super().__init__()
        self.config = config
        self.sample_rate = config.sample_rate
        self.unit_embedding = nn.Embedding(config.units, config.unit_width)
        self.speaker_embedding = (
            nn.Embedding(config.speakers, config.speaker_width) if config.speakers
            else nn.Linear(config.speaker_vector, config.speaker_width) if config.speaker_vector else None
        )
        self.language_embedding = nn.Embedding(config.languages, config.language_width) if config.languages else None
        sizes = (config.unit_width, config.duration_hidden, config.duration_kernel, config.duration_dropout)
        self.predictor = DurationPredictor(*sizes) if config.durations else None
        self.generator = HiFiGAN(config.generator)
        self.hop = self.generator.samples_per_frame
        self.frame_rate = config.sample_rate / self.hop
        self.lookahead = self.generator.lookahead

    def forward(
        self,
        units: Tensor,
        lengths: Tensor | None = None,
        durations: Tensor | None = None,
        speaker: Tensor | None = None,
        language: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Waveform [B, 1, samples] float32 at least, zero beyond its lengths [B], and these."""
        state = self.initial_state(len(units), speaker, language, predict=durations is None)
        first, state = self.step(units, state, lengths, durations)
        emitted = state.emitted
        rest, state = self.flush(state)
        wave, total = join_rows([(first[:, 0], emitted), (rest[:, 0], state.emitted)])
        return zero_padding(wave, total)[:, None], total

    def initial_state(
        self,
        batch: int,
        speaker: Tensor | None = None,
        language: Tensor | None = None,
        predict: bool = True,
    ) -> State:
        """State of `batch` rows; speaker: numbers [B] or vectors [B, D]; language: numbers [B].

        predict: durations come from the predictor, if there is one; else they are given to `step`, or are one frame.
        """
        weight = self.unit_embedding.weight
        zero = torch.zeros(batch, dtype=torch.int64, device=weight.device)
        state = State(
            before=self._condition("language", language, batch, weight),
            after=self._condition("speaker", speaker, batch, weight),
            generator=self.generator.initial_state(batch),
            emitted=zero,
        )
        if predict and self.predictor is not None:
            state["predictor"] = self.predictor.initial_state(batch)
            state["waiting"] = weight.new_zeros(batch, int(self.predictor.lookahead), weight.shape[1])
            state["held"] = zero
        return state

    def _condition(self, name: str, value: Tensor | None, batch: int, weight: Tensor) -> Tensor:
        """Embedded speaker or language [B, D]; D is 0 where the vocoder has none."""
        embedding = self.speaker_embedding if name == "speaker" else self.language_embedding
        if embedding is None:
            if value is not None:
                raise RequestError(f"{name} given to a vocoder that has none")
            return weight.new_zeros(batch, 0)
        if value is None:
            raise RequestError(f"this vocoder needs a {name}: give one for each row")
        value = value.to(weight.device)
        if isinstance(embedding, nn.Embedding):
            if value.shape != (batch,) or value.is_floating_point():
                raise RequestError(f"{name}: {batch} numbers expected, a tensor {tuple(value.shape)} found")
            if bool((value < 0).any() | (value >= embedding.num_embeddings).any()):
                raise RequestError(f"{name} {value.tolist()}: this vocoder has 0 to {embedding.num_embeddings - 1}")
        elif value.shape != (batch, embedding.in_features):
            raise RequestError(f"{name}: vectors [{batch}, {embedding.in_features}] expected, not {tuple(value.shape)}")
        return embedding(value)

    def step(
        self, units: Tensor, state: State, lengths: Tensor | None = None, durations: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Advance by units [B, N] int64 (N >= 0): waveform [B, 1, samples]; `state.emitted` [B] of them are valid."""
        home = self.unit_embedding.weight.device
        units, durations = units.to(home), None if durations is None else durations.to(home)
        lengths = self._check(units, lengths, durations)
        embedded = self.unit_embedding(zero_padding(units, lengths))
        if "predictor" not in state:
            if durations is None:
                durations = torch.ones_like(units)
            return self._synthesize(*expand(embedded, durations, lengths), state, State())
        if durations is not None:
            raise RequestError("durations given to a stream that predicts them: start it with predict=False")
        assert self.predictor is not None
        logs, predictor = self.predictor.step(embedded, state["predictor"], lengths)
        return self._synthesize(*self._last(embedded, lengths, logs, state, predictor))

    def flush(self, state: State, rows: Tensor | None = None) -> tuple[Tensor, State]:
        """End rows [B] bool (None: all): the waveform that was still held back."""
        if "predictor" in state:
            assert self.predictor is not None
            logs, predictor = self.predictor.flush(state["predictor"], rows)
            nothing = state["waiting"][:, :0]
            frames, counts, state, after = self._last(nothing, predictor.emitted * 0, logs, state, predictor)
            wave, after = self._synthesize(frames, counts, state, after)
            state = after
            first, emitted = wave[:, 0, :, None], after.emitted
        else:
            first, emitted = state["before"].new_zeros(state.batch, 0, 1), state.emitted * 0
        rest, generator = self.generator.flush(state["generator"], rows)
        wave, total = join_rows([(first, emitted), (rest, generator.emitted)])
        return full_precision(wave).transpose(1, 2), State({**state, "generator": generator, "emitted": total})

    def _last(self, embedded: Tensor, lengths: Tensor, logs: Tensor, state: State, predictor: State):
        """Units of known duration become frames; those that the predictor has not answered yet wait."""
        queue, total = join_rows([(state["waiting"], state["held"]), (embedded, lengths)])
        known = predictor.emitted
        after = State(
            predictor=predictor,
            waiting=slice_rows(zero_padding(queue, total), known, state["waiting"].shape[1]),
            held=total - known,
        )
        most = int(known.max()) if known.numel() else 0
        frames, counts = expand(queue[:, :most], to_frames(logs[:, :most]), known)
        return frames, counts, state, after

    def _synthesize(self, frames: Tensor, counts: Tensor, state: State, after: State) -> tuple[Tensor, State]:
        parts = [state["before"], frames, state["after"]]
        around = [part[:, None].expand(-1, frames.shape[1], -1) if part.dim() == 2 else part for part in parts]
        wave, generator = self.generator.step(torch.cat(around, dim=2), state["generator"], counts)
        kept = State(before=state["before"], after=state["after"], generator=generator, emitted=generator.emitted)
        return full_precision(wave).transpose(1, 2), State({**after, **kept})

    def _check(self, units: Tensor, lengths: Tensor | None, durations: Tensor | None) -> Tensor:
        if units.dim() != 2 or units.is_floating_point():
            raise RequestError(f"units {tuple(units.shape)} {units.dtype}: whole numbers [batch, units] expected")
        if lengths is not None:
            check_lengths(lengths, len(units), units.shape[1])
        lengths = lengths_of(units, lengths)
        if durations is not None and durations.shape != units.shape:
            raise RequestError(f"durations {tuple(durations.shape)} for units {tuple(units.shape)}: give one each")
        if durations is not None:
            if durations.is_floating_point():
                raise RequestError(f"durations {durations.dtype}: whole numbers of frames expected")
            lasting = zero_padding(durations, lengths)
            if bool((lasting < 0).any()):
                raise RequestError(f"a duration of {int(lasting.min())} frames: 0 is the shortest")
        inside = zero_padding(units, lengths)
        if inside.numel() and bool((inside < 0).any() | (inside >= self.config.units).any()):
            raise RequestError(f"units from {int(inside.min())} to {int(inside.max())}: 0 to {self.config.units - 1} "
                               "are this vocoder's; was it trained on other units?")
        return lengths
