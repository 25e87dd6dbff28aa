"""SylBoost: an encoder whose frames come to be alike within a syllable (SyllableLM, arXiv:2410.04029).

Where syllables begin is first read from how far one can guess behind a border (LossPred): a span is hidden, and the
labels of its frames are told from either side. Then the encoder learns to give the mean of its own earlier frames over
each segment, and the borders are found anew in what it has learned.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from vivavoce.encoders.base import Trunk
from vivavoce.encoders.segments import Cut, best_sizes, cut_costs, traced
from vivavoce.encoders.units import deduplicate
from vivavoce.errors import RecipeError
from vivavoce.nn.streaming import valid
from vivavoce.schema.arguments import arguments_of
from vivavoce.training.ssl_labels import Labels
from vivavoce.training.ssl_masked_labels import MaskedLabels, cosines


class Segments(Labels):
    """The number of its segment for every frame of a clip, as labels are given; found by the encoder as it is when the
    phase begins.

    by: `features`, at `layer`, cut as `cut` says; or `losses` of `predictor`'s first labels: a normalised cut of
    `loss_matrix` into a segment for every `each` seconds.
    """

    def __init__(
        self,
        predictor: MaskedLabels,
        by: Literal["features", "losses"] = "features",
        layer: int | None = None,
        cut: Mapping[str, Any] | None = None,
        each: float = 0.2,
        span: int = 50,
    ):
        super().__init__(clusters=2**16, layer=layer)  # as many segments as a clip may have
        if by not in ("features", "losses"):
            raise RecipeError(f"segments.by: '{by}': features or losses")
        if not isinstance(span, int) or span < 2 or each <= 0:
            raise RecipeError(f"segments: span {span!r} and each {each!r}: at least 2 frames, and more than 0 seconds")
        self.by, self.each, self.span = by, each, span
        self.cut = Cut(**arguments_of(Cut, error=RecipeError).check(cut or {}, "segments.cut"))
        self._predictor = predictor
        self.inner = predictor.labels[0]

    @property
    def teacher(self) -> Trunk:
        """The encoder as the phase found it."""
        assert isinstance(self.encoder, Trunk)
        return self.encoder

    def bind(self, trunk: Trunk, waves: Sequence[Tensor]) -> None:
        super().bind(trunk, waves)
        if self.by == "losses":
            self.inner.bind(trunk, waves)

    @torch.no_grad()
    def heard(self, wave: Tensor) -> Tensor:
        """Numbers 0, 1, … of the segments in which the frames of a waveform [samples] are: int64 [T]."""
        sizes = torch.tensor(self.borders(wave)).diff()
        return torch.arange(len(sizes)).repeat_interleave(sizes)

    @torch.no_grad()
    def borders(self, wave: Tensor) -> list[int]:
        """The frames at which segments of a waveform [samples] begin, and how many frames there are."""
        rate = self.teacher.frame_rate
        if self.by == "features":
            return self.cut.borders(self.teacher.features([wave], layer=self.layer).values[0].cpu(), rate)
        labels = self.inner.heard(wave)
        size = len(labels)
        _, high = self.cut.counts(size, round(size / (rate * self.each), 6))
        if high <= 1:
            return [0, size] if size else [0]
        costs = cut_costs(loss_matrix(self.teacher, self._predictor, wave, labels, self.span), self.cut.longest)
        return traced(best_sizes(costs, high, self.cut.shortest), high)

    def state(self) -> dict[str, Tensor]:
        return self.inner.state()

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.inner.load(state)


@torch.no_grad()
def loss_matrix(
    trunk: Trunk, predictor: MaskedLabels, wave: Tensor, labels: Tensor, span: int, rows: int = 32
) -> Tensor:
    """How likely the label of frame r is when frame c is the nearest that is heard: [T, T] in [0, 1].

    `span` frames are hidden at a time, at every place; those of the first half are told from the frame before the span,
    the others from the one behind it. 0 where r and c are further apart than half a span, or equal. labels: [T] of the
    waveform [samples]; rows: how many spans are heard at once.
    """
    frames, counts = trunk.local(wave[None], torch.tensor([len(wave)]))
    x = trunk.embed(trunk.local_norm(frames))
    size, half = len(labels), span // 2
    found = x.new_zeros(size, size)
    at = torch.arange(x.shape[1])
    for begin in range(1 - span, size, rows):
        starts = torch.arange(begin, min(begin + rows, size))
        hidden = (at >= starts[:, None]) & (at < starts[:, None] + span)
        heard = torch.where(hidden[..., None], predictor.mask_vector.to(x.dtype), x)
        y = trunk.context(heard, counts.expand(len(starts)))[:, :size]
        logits = cosines(predictor.projections[0](y), predictor.vectors[0]) / predictor.temperature
        likely = logits.softmax(-1).gather(-1, labels.view(1, -1, 1).expand(len(starts), -1, 1))[..., 0]
        for start, told in zip(starts.tolist(), likely):
            end, middle = start + span, start + half
            if start >= 1:
                found[start : min(middle, size), start - 1] = told[start : min(middle, size)]
            if end < size:
                found[max(middle, 0) : end, end] = told[max(middle, 0) : end]
    return found


class SegmentRegression(MaskedLabels):
    """Mean squared distance of every frame at `layer` from the mean over its segment of what the encoder gave there
    when the phase began.

    segments: options of `Segments`. targets, projected and temperature: of the `masked_labels` phase that this one
    starts from, whose weights tell the losses; they stay as they are.
    """

    def __init__(
        self,
        trunk: Trunk,
        targets: Mapping[str, Any],
        segments: Mapping[str, Any] | None = None,
        layer: int | None = None,
        projected: int = 256,
        temperature: float = 0.1,
    ):
        super().__init__(trunk, targets, temperature=temperature, projected=projected)
        self.masking = None
        options = arguments_of(Segments, skip=1, error=RecipeError).check(segments or {}, "objective.segments")
        trunk.check_layer(layer)
        self.layer = layer
        self.segments = Segments(self, **{"layer": layer, **options})
        self.labels = [self.segments]

    def forward(self, trunk: Trunk, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        wave, lengths = batch["wave"], batch["lengths"]
        with torch.no_grad():
            goals = self.segments.teacher.to(wave.device)(wave, lengths, self.layer).float()
        x = trunk(wave, lengths, self.layer).float()
        numbers = batch["labels"][0]
        inside = valid(trunk.frames(lengths), x.shape[1]) & (numbers >= 0)
        distance = (x - segment_means(goals, numbers)).square().mean(-1)[inside]
        begins = inside.clone()
        begins[:, 1:] &= numbers[:, 1:] != numbers[:, :-1]
        rate = begins.sum() * trunk.frame_rate / inside.sum().clamp(min=1)
        return {"loss": distance.mean() if len(distance) else x.sum() * 0, "segments_per_second": rate}


def segment_means(frames: Tensor, numbers: Tensor) -> Tensor:
    """Frames [B, T, D] -> the mean over each run of equal numbers [B, T], at all of its frames: [B, T, D]."""
    runs = deduplicate(numbers)
    at = torch.arange(runs.durations.shape[1], device=frames.device).expand(len(frames), -1)
    at = torch.stack([a.repeat_interleave(n) for a, n in zip(at, runs.durations)])[..., None].expand_as(frames)
    sums = frames.new_zeros(len(frames), runs.durations.shape[1], frames.shape[2]).scatter_add_(1, at, frames)
    return (sums / runs.durations.clamp(min=1)[..., None]).gather(1, at)
