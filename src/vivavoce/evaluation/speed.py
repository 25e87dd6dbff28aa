"""How long a full-duplex model's step takes, and where the time goes: one row or many in lockstep, by part."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from vivavoce.errors import RequestError


@dataclass(frozen=True)
class StepTimes:
    """Milliseconds of each step [steps], the frame's length in milliseconds, and milliseconds a step by part."""

    rows: int
    frame_ms: float
    step_ms: np.ndarray
    parts_ms: dict[str, float]

    @property
    def real_time_factor(self) -> float:
        """Median step over the frame's length: below 1 keeps up with a conversation."""
        return float(np.median(self.step_ms)) / self.frame_ms

    def to_json(self) -> dict[str, Any]:
        """Figures as plain data."""
        return {
            "rows": self.rows,
            "frame_ms": self.frame_ms,
            "steps": len(self.step_ms),
            "median_ms": round(float(np.median(self.step_ms)), 3),
            "p99_ms": round(float(np.percentile(self.step_ms, 99)), 3),
            "real_time_factor": round(self.real_time_factor, 4),
            "parts_ms": {name: round(value, 3) for name, value in self.parts_ms.items()},
        }


def duplex_parts(model: Any) -> dict[str, tuple[Any, str]]:
    """The parts of a duplex model's step: name -> (object, method); empty for a model that shows no parts."""
    system = getattr(model, "system", None)
    if system is None or not hasattr(system, "stage"):
        return {}
    return {
        "encoder": (system.ear, "hear"),
        "embedding": (system.stage, "columns"),
        "backbone": (system.stage.backbone, "step"),
        "decoder": (system.codec, "decode_step"),
    }


@contextmanager
def stopwatches(parts: dict[str, tuple[Any, str]]) -> Iterator[dict[str, float]]:
    """Time every call of the given methods while the block runs: name -> seconds so far."""
    spent = dict.fromkeys(parts, 0.0)

    def timed(name: str, call: Callable) -> Callable:
        def run(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                spent[name] += time.perf_counter() - start

        return run

    for name, (owner, method) in parts.items():
        # an attribute of the object hides the class's method until it is deleted
        owner.__dict__[method] = timed(name, getattr(owner, method))
    try:
        yield spent
    finally:
        for owner, method in parts.values():
            owner.__dict__.pop(method, None)


def time_steps(model: Any, rows: int = 1, steps: int = 200, warmup: int = 20, seed: int = 0) -> StepTimes:
    """Steps of `rows` conversations that hear quiet noise, timed one by one after `warmup` untimed ones.

    What no part accounts for (heads, sampling, layout, bookkeeping) is called "heads and rest". Raises `RequestError`
    for a model without the verb `duplex`, and for less than one row or step.
    """
    if "duplex" not in model.verbs:
        raise RequestError(f"the model has no verb 'duplex' (it has {', '.join(model.verbs)})")
    if rows < 1 or steps < 1:
        raise RequestError(f"{rows} rows, {steps} steps: at least one of each")
    lockstep = model.duplex_rows(rows)
    noise = np.random.default_rng(seed)
    frames = 0.01 * noise.standard_normal((steps + warmup, rows, lockstep.frame_size)).astype(np.float32)
    active = np.ones(rows, bool)
    for frame in frames[:warmup]:
        lockstep.step(frame, active)
    times = np.zeros(steps)
    with stopwatches(duplex_parts(model)) as spent:
        for index, frame in enumerate(frames[warmup:]):
            start = time.perf_counter()
            lockstep.step(frame, active)
            times[index] = time.perf_counter() - start
    parts = {name: 1000 * seconds / steps for name, seconds in spent.items()}
    if parts:
        parts["heads and rest"] = max(0.0, 1000 * float(times.mean()) - sum(parts.values()))
    return StepTimes(rows, 1000 * lockstep.frame_size / model.sample_rate, 1000 * times, parts)
