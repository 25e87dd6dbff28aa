"""How a phase is trained: budget, optimizers, schedules, averaging, intervals. Plain data, as a recipe writes it.

Every value is checked by its type below, bounds included; a `RecipeError` names the first that does not fit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, StrictBool, StrictFloat, StrictInt, StrictStr, TypeAdapter, ValidationError

from vivavoce.errors import RecipeError

Count: TypeAlias = Annotated[StrictInt, Field(ge=1)]
Positive: TypeAlias = Annotated[StrictFloat, Field(gt=0, allow_inf_nan=False)]
Amount: TypeAlias = Annotated[StrictFloat, Field(ge=0, allow_inf_nan=False)]
Share: TypeAlias = Annotated[StrictFloat, Field(ge=0, le=1)]
Momentum: TypeAlias = Annotated[StrictFloat, Field(ge=0, lt=1)]
Patterns: TypeAlias = Annotated[
    tuple[StrictStr, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
]


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """One optimizer and its schedule (see `optimizers.factor`)."""

    kind: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: Positive = 3e-4
    betas: tuple[Momentum, Momentum] = (0.9, 0.95)
    eps: Positive = 1e-8
    weight_decay: Amount = 0.0  # on matrices only (two dimensions larger than one), never on gains, biases
    decayed: Patterns = ()  # patterns of the names of matrices that it is on; empty: all
    schedule: Literal["cosine", "linear", "constant", "exponential", "inverse_sqrt", "wsd"] = "cosine"
    warmup: Annotated[StrictInt, Field(ge=0)] = 0  # steps of linear warm-up
    final: Share = 0.1  # share of the rate that cosine, linear and wsd end at
    gamma: Positive = 0.999996  # exponential: factor per step
    decay: Share = 0.2  # wsd: share of the budget that decays
    clip: Positive | None = 1.0  # largest norm of the gradient over all parameters; None: only logged
    rates: Mapping[StrictStr, Amount] = field(default_factory=dict)  # pattern of parameter names -> factor

    def __post_init__(self) -> None:
        _check(self, "optimizer.")

    @classmethod
    def of(cls, values: "OptimizerSettings | Mapping[str, Any]", where: str = "optimizer") -> "OptimizerSettings":
        """Settings from a mapping; unknown keys and values that do not fit are a `RecipeError` beginning with
        `where`."""
        if isinstance(values, OptimizerSettings):
            return values
        _known(cls, values, where)
        try:
            return cls(**values)
        except RecipeError as error:
            raise RecipeError(f"{where}.{str(error).removeprefix('optimizer.')}") from None


@dataclass(frozen=True, kw_only=True)
class PhaseSettings:
    """One phase. The budget is `steps`, `minutes`, `tokens`, or several (whichever ends first); schedules are laid out
    for it."""

    name: StrictStr
    steps: Count | None = None
    minutes: Positive | None = None
    tokens: Count | None = None  # that are learned from, of a task that counts them
    seed: StrictInt = 0
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    optimizers: Mapping[str, OptimizerSettings] = field(default_factory=dict)  # by name, where they differ
    accumulate: Count = 1  # shares of the batch that each process works through one after another
    ema: Annotated[StrictFloat, Field(gt=0, lt=1)] | None = None  # decay of the averaged weights
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the forward pass (autocast); weights stay float32
    recompute: StrictBool = False  # transformer layers keep no activations: less memory, a third slower
    shard: StrictBool = False  # under torchrun: each process keeps a part of the layers' weights (FSDP2), not all
    device: StrictStr = "cpu"
    workers: Annotated[StrictInt, Field(ge=0)] = 0  # processes that prepare batches
    trainable: Patterns = ()  # patterns of parameter names; empty: all
    frozen: Patterns = ()
    start_from: StrictStr | None = None  # phase of the same run whose weights are taken
    log_every: Count = 10  # steps
    evaluate_every: Count = 500
    sample_every: Count = 2000
    checkpoint_every: Count = 1000
    checkpoint_minutes: Positive = 5.0  # as well: at least this often
    keep: Count = 2  # checkpoints of the phase that stay

    def __post_init__(self) -> None:
        where = f"phase '{self.name}': "
        if not isinstance(self.optimizers, Mapping):
            raise RecipeError(f"{where}optimizers is {self.optimizers!r}: give settings by the optimizer's name")
        object.__setattr__(self, "optimizer", OptimizerSettings.of(self.optimizer, f"{where}optimizer"))
        named = {k: OptimizerSettings.of(v, f"{where}optimizers.{k}") for k, v in self.optimizers.items()}
        object.__setattr__(self, "optimizers", named)
        _check(self, where)
        if self.steps is None and self.minutes is None and self.tokens is None:
            raise RecipeError(f"phase '{self.name}' has no budget: give steps, minutes or tokens")

    @classmethod
    def of(cls, values: "PhaseSettings | Mapping[str, Any]") -> "PhaseSettings":
        """Settings from a mapping as a recipe has it; unknown keys and values that do not fit are a `RecipeError`."""
        if isinstance(values, PhaseSettings):
            return values
        _known(cls, values, "phase")
        return cls(**values)

    def optimizer_named(self, name: str) -> OptimizerSettings:
        """Settings of one of the task's optimizers: its own, else the common ones."""
        return self.optimizers.get(name, self.optimizer)


def _known(cls: type, values: Any, where: str) -> None:
    known = [f.name for f in fields(cls)]
    if not isinstance(values, Mapping):
        raise RecipeError(f"{where} is {_shown(values)}: give a mapping of {', '.join(known)}")
    for key in values:
        if key not in known:
            raise RecipeError(f"{where}: unknown key '{key}'; known are {', '.join(known)}")


@cache
def _adapters(cls: type) -> dict[str, TypeAdapter[Any]]:
    """A check of each field's type by the field's name."""
    types: dict[str, Any] = {f.name: f.type for f in fields(cls) if f.name not in ("optimizer", "optimizers")}
    return {name: TypeAdapter(kind) for name, kind in types.items()}


def _check(settings: Any, where: str) -> None:
    """Every field as its type has it; a RecipeError that begins with `where` for one that does not fit. Settings of
    optimizers have been checked by themselves."""
    kind: Any = type(settings)
    for name, adapter in _adapters(kind).items():
        value = getattr(settings, name)
        try:
            object.__setattr__(settings, name, adapter.validate_python(value))
        except ValidationError as error:
            found = error.errors()[0]
            path = name + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in found["loc"])
            if isinstance(found["input"], str) and found["type"] in ("int_type", "float_type"):
                why = f"the text '{found['input']}', not a number; YAML wants 5.0e-4, not 5e-4"
            elif found["type"] == "literal_error":
                why = f"'{found['input']}': choose one of {found['ctx']['expected'].replace(chr(39), '')}"
            else:
                said = found["msg"].replace("tuple", "list").replace("dictionary", "mapping")
                why = f"{_shown(found['input'])}: {said[0].lower()}{said[1:]}"
            raise RecipeError(f"{where}{path} is {why}") from None


def _shown(value: Any) -> str:
    """A value as YAML's readers know it, in one line."""
    return "null" if value is None else f"{value!r:.60}"
