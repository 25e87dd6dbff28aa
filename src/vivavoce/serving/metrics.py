"""What a server counts and times, in Prometheus' form; every name says what is measured and in which unit."""

from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np

from vivavoce.errors import need

STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.12, 0.2, 0.5)
AGES = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 5.0)
GAPS = (-1.0, -0.5, -0.2, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.0, 4.0)
RECENT = 8192  # frames of which exact percentiles are kept
WAITS = (0.1, 1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """Histograms and counters of one model's server. `text()` is what `/metrics` shows.

    frame_seconds: from when a frame was due to the end of its step; late_frames: those that took longer than a frame;
    turn_gap: end of the user's speech (voice activity) to the begin of the model's sound, negative where it was sooner;
    barge_in_stop: begin of the user's speech over the model's to the model's last sound.
    """

    def __init__(self, model: str):
        client = need("prometheus_client", "serve", "a server")
        self._client, self.registry = client, client.CollectorRegistry()
        self.model = model
        self.late_frames_total = self.frames_total = 0
        self.last_frames: deque[float] = deque(maxlen=RECENT)
        self.last_steps: deque[float] = deque(maxlen=RECENT)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Any:
            made = client.Histogram(f"vivavoce_{name}", text, ["model"], buckets=buckets, registry=self.registry)
            return made.labels(model)

        def counter(name: str, text: str, *labels: str) -> Any:
            made = client.Counter(f"vivavoce_{name}", text, ["model", *labels], registry=self.registry)
            return made if labels else made.labels(model)

        def gauge(name: str, text: str) -> Any:
            return client.Gauge(f"vivavoce_{name}", text, ["model"], registry=self.registry).labels(model)

        self.step = histogram("step_seconds", "computing of one step of all rows", STEPS)
        self.frame_time = histogram("frame_seconds", "from when a frame was due to the end of its steps", STEPS)
        self.drift = histogram("drift_seconds", "how late a frame began", AGES)
        self.input_age = histogram("input_age_seconds", "from a frame's arrival to its step", AGES)
        self.output_lead = histogram("output_lead_seconds", "how far output is ahead of being heard", AGES)
        self.queue_wait = histogram("queue_wait_seconds", "from asking for a conversation to having it", WAITS)
        self.turn_gap = histogram("turn_gap_seconds", "end of the user's speech to the model's first sound", GAPS)
        self.barge_in_stop = histogram("barge_in_stop_seconds", "user breaks in to the model's last sound", GAPS)
        self.recognised = histogram("recognition_seconds", "end of an utterance to its words, by a recogniser", WAITS)
        self.late = counter("late_frames_total", "frames whose steps ended later than the next was due")
        self.lost_ticks = counter("lost_frames_total", "frames of the clock that were left out, being too late")
        self.passed_over = counter("passed_over_frames_total", "frames of input never heard, for lost_frames")
        self.skipped = counter("skipped_frames_total", "frames in which a row was held, its input being late")
        self.ended = counter("ended_conversations_total", "conversations that ended", "reason")
        self.refused = counter("refused_total", "conversations that were refused", "reason")
        self.unrecognised = counter("unrecognised_total", "utterances that the recogniser failed on", "reason")
        self.rows = gauge("rows", "conversations that there can be at once")
        self.live = gauge("conversations", "conversations that are going on")
        self.waiting = gauge("queue", "clients that wait for a row")

    def stepped(self, seconds: float) -> None:
        """One step of all rows took so long."""
        self.step.observe(seconds)
        self.last_steps.append(seconds)

    def frame(self, seconds: float, length: float) -> None:
        """A frame's steps took until `seconds` after it was due; frames last `length` seconds."""
        self.frame_time.observe(seconds)
        self.last_frames.append(seconds)
        self.frames_total += 1
        if seconds > length:
            self.late_frames_total += 1
            self.late.inc()

    @staticmethod
    def percentiles(seconds: Iterable[float]) -> dict[str, float] | None:
        """p50, p95 and p99 in milliseconds; None of nothing."""
        values = 1000 * np.array(list(seconds))
        if not len(values):
            return None
        return {f"p{at}": round(float(np.percentile(values, at)), 2) for at in (50, 95, 99)}

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return self._client.generate_latest(self.registry)
