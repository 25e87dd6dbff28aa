"""How a phase is trained: budget, optimizers, schedules, averaging, intervals. Plain data, as a recipe writes it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from vivavoce.errors import RecipeError

OPTIMIZERS = ("adamw", "adam", "sgd")
SCHEDULES = ("cosine", "linear", "constant", "exponential", "inverse_sqrt", "wsd")
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """One optimizer and its schedule (see `optimizers.factor`)."""

    kind: str = "adamw"
    learning_rate: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0  # on matrices only (two dimensions larger than one), never on gains, biases
    schedule: str = "cosine"
    warmup: int = 0  # steps of linear warm-up
    final: float = 0.1  # share of the rate that cosine, linear and wsd end at
    gamma: float = 0.999996  # exponential: factor per step
    decay: float = 0.2  # wsd: share of the budget that decays
    clip: float | None = 1.0  # largest norm of the gradient over all parameters; None: only logged
    rates: Mapping[str, float] = field(default_factory=dict)  # pattern of parameter names -> factor

    def __post_init__(self) -> None:
        _one_of("optimizer.kind", self.kind, OPTIMIZERS)
        _one_of("optimizer.schedule", self.schedule, SCHEDULES)
        object.__setattr__(self, "betas", tuple(self.betas))
        if not self.learning_rate > 0:
            raise RecipeError(f"optimizer.learning_rate is {self.learning_rate}: it must be greater than 0")
        if self.clip is not None and not self.clip > 0:
            raise RecipeError(f"optimizer.clip is {self.clip}: it must be greater than 0, or null for no clipping")

    @classmethod
    def of(cls, values: "OptimizerSettings | Mapping[str, Any]", where: str = "optimizer") -> "OptimizerSettings":
        """Settings from a mapping; unknown keys are refused."""
        return values if isinstance(values, OptimizerSettings) else cls(**_known(cls, values, where))


@dataclass(frozen=True, kw_only=True)
class PhaseSettings:
    """One phase. The budget is `steps`, `minutes`, or both (whichever ends first); schedules are laid out for it."""

    name: str
    steps: int | None = None
    minutes: float | None = None
    seed: int = 0
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    optimizers: Mapping[str, OptimizerSettings] = field(default_factory=dict)  # by name, where they differ
    accumulate: int = 1  # batches per update
    ema: float | None = None  # decay of the averaged weights
    dtype: str = "float32"  # of the forward pass (autocast); weights stay float32
    device: str = "cpu"
    workers: int = 0  # processes that prepare batches
    trainable: tuple[str, ...] = ()  # patterns of parameter names; empty: all
    frozen: tuple[str, ...] = ()
    start_from: str | None = None  # phase of the same run whose weights are taken
    log_every: int = 10  # steps
    evaluate_every: int = 500
    sample_every: int = 2000
    checkpoint_every: int = 1000
    checkpoint_minutes: float = 5.0  # as well: at least this often
    keep: int = 2  # checkpoints of the phase that stay

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise RecipeError(f"phase '{self.name}' has no budget: give steps, minutes or both")
        for budget in ("steps", "minutes"):
            value = getattr(self, budget)
            if value is not None and not value > 0:
                raise RecipeError(f"phase '{self.name}': {budget} is {value}: it must be greater than 0")
        for count in ("accumulate", "log_every", "evaluate_every", "sample_every", "checkpoint_every", "keep"):
            if getattr(self, count) < 1:
                raise RecipeError(f"phase '{self.name}': {count} is {getattr(self, count)}: it must be at least 1")
        if self.ema is not None and not 0 < self.ema < 1:
            raise RecipeError(f"phase '{self.name}': ema is {self.ema}: a decay lies between 0 and 1")
        _one_of(f"phase '{self.name}': dtype", self.dtype, DTYPES)
        set_ = object.__setattr__
        set_(self, "trainable", _patterns(self.trainable))
        set_(self, "frozen", _patterns(self.frozen))
        set_(self, "optimizer", OptimizerSettings.of(self.optimizer))
        named = {key: OptimizerSettings.of(value, f"optimizers.{key}") for key, value in self.optimizers.items()}
        set_(self, "optimizers", named)

    @classmethod
    def of(cls, values: "PhaseSettings | Mapping[str, Any]") -> "PhaseSettings":
        """Settings from a mapping as a recipe has it; unknown keys are refused."""
        return values if isinstance(values, PhaseSettings) else cls(**_known(cls, values, "phase"))

    def optimizer_named(self, name: str) -> OptimizerSettings:
        """Settings of one of the task's optimizers: its own, else the common ones."""
        return self.optimizers.get(name, self.optimizer)


def _known(cls: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    types = {f.name: f.type for f in fields(cls)}
    for key, value in values.items():
        if key not in types:
            raise RecipeError(f"{where}: unknown key '{key}'; known are {', '.join(types)}")
        if isinstance(value, str) and types[key] in (int, float, int | None, float | None):
            raise RecipeError(f"{where}.{key} is the text '{value}', not a number; YAML wants 5.0e-4, not 5e-4")
    return dict(values)


def _one_of(where: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise RecipeError(f"{where} is '{value}': choose one of {', '.join(choices)}")


def _patterns(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)
