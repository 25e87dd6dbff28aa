"""The recipe of a system as pydantic models: streams on clocks, stages, interaction, training phases.

Parts (tokenizers, encoders, layouts, backbones, heads) are named by `kind` and carry their own options; the part that
the kind names checks those when it is built. Everything else is checked here, and as a whole: every name that one
section uses must be declared in another.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
# the names of evaluation/harness.py, which this floor must not import
Evaluation = Literal[
    "codec", "digits", "footprint", "generation", "intelligibility", "pairwise_likelihood", "resynthesis",
    "turn_taking", "unit_likelihood", "units",
]
SLICE = re.compile(r"^(?P<stream>[A-Za-z_][\w-]*)(\[(?P<cells>[^\]]*)\])?$")


def stream_name(cells: str) -> str:
    """The stream of a slice of cells: `voice[1:]` -> `voice`."""
    match = SLICE.match(cells)
    if match is None:
        raise ValueError(f"'{cells}' names no cells: write a stream's name, or a slice of it such as voice[1:]")
    return match["stream"]


class Part(BaseModel):
    """A part by `kind`, with the options that this kind knows."""

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: str

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the kind."""
        return dict(self.model_extra or {})


class Strict(BaseModel):
    """A section whose keys are all known here: an unknown one is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Clock(Strict):
    """A clock at `ratio` times that of another stream."""

    of: str
    ratio: float = Field(gt=0)


class Stream(Strict):
    """A named stream: its cells come from a tokenizer (ids), an encoder (frames) or a width alone (latents, mel).

    clock: Hz; another stream with a ratio; `events` (onsets); `order` (plain text); `once` (speaker, language).
    Left out, it is the tokenizer's or encoder's own.
    """

    tokenizer: str | None = None
    encoder: str | None = None
    width: int | None = Field(default=None, gt=0)
    clock: float | Clock | Literal["events", "order", "once"] | None = None

    @model_validator(mode="after")
    def _one_source(self):
        sources = [s for s in (self.tokenizer, self.encoder, self.width) if s is not None]
        if len(sources) != 1:
            raise ValueError("a stream has exactly one of tokenizer, encoder, width")
        return self


class Task(Strict):
    """Which cells are given and which filled; `weight` for sampling.

    layout: where cells stand in this task, in place of the stage's. template: an order of literals, streams, turns and
    layouts, as the layout `template` has it; its item `layout` is the task's layout, or else the stage's, whose
    literals it knows.
    """

    given: tuple[str, ...] = ()
    fills: tuple[str, ...] = Field(min_length=1)
    template: tuple[int | str | dict[str, Any], ...] | None = None
    layout: Part | None = None
    weight: float = Field(default=1.0, ge=0)


class Input(Strict):
    """How a given stream reaches the backbone."""

    encoder: str | None = None
    adapter: Part | None = None
    enters: Literal["grid", "memory", "prefix", "condition"] = "grid"


class Backbone(BaseModel):
    """The network over the grid; sizes as the kind knows them, or `from` a published text LM."""

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: str = "decoder"

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the kind."""
        return dict(self.model_extra or {})


class Head(Part):
    """What predicts a stream's cells: linear, depth, ctc, flow, …"""


class Decode(Strict):
    """Order in which cells are chosen, how they are sampled, and when it ends."""

    order: Literal["ar", "by_level", "masked", "ode", "ctc", "transducer"] = "ar"
    sampling: dict[str, Any] = Field(default_factory=dict)
    length: str = "clock"


class Stage(Strict):
    """One network with its tasks; a chain of stages makes a system. `layout` holds for tasks that have none of their
    own; left out, all have one."""

    name: str
    tasks: dict[str, Task] = Field(min_length=1)
    layout: Part | None = None
    inputs: dict[str, Input] = Field(default_factory=dict)
    backbone: Backbone
    heads: dict[str, Head] = Field(min_length=1)
    decode: Decode = Field(default_factory=Decode)

    @field_validator("heads", mode="before")
    @classmethod
    def _short_heads(cls, heads: Any) -> Any:
        """`text: linear` is short for `text: {kind: linear}`."""
        if isinstance(heads, dict):
            return {name: {"kind": head} if isinstance(head, str) else head for name, head in heads.items()}
        return heads

    @model_validator(mode="after")
    def _tasks_have_layouts(self):
        for name, task in self.tasks.items():
            where = f"tasks.{name}"
            if task.template is None and task.layout is None and self.layout is None:
                raise ValueError(f"{where}: give it a layout or a template: the stage has no layout for all tasks")
            named = (task.template or ()).count("layout")
            if task.template is not None and named != (task.layout is not None) and (task.layout or named > 1):
                raise ValueError(f"{where}.template: name 'layout' once, where the task's layout stands in it")
            if named and task.layout is None and self.layout is None:
                raise ValueError(f"{where}.template: there is no layout, neither the task's nor the stage's")
        return self

    @model_validator(mode="after")
    def _filled_streams_have_heads(self):
        for name, task in self.tasks.items():
            for cells in task.fills:
                if stream_name(cells) not in self.heads:
                    raise ValueError(f"tasks.{name}.fills: '{cells}' has no head; heads are for {sorted(self.heads)}")
        return self


class Interaction(Strict):
    """How the system takes turns."""

    kind: Literal["offline", "turns", "full_duplex"]
    hears: str = "user"
    speaks: str = "voice"
    writes: str | None = "text"
    transcribes: str | None = None


class Phase(Strict):
    """One phase of training. `trains` names a tokenizer, or a stage; `data` and `objective` are parts by kind.

    after: the phases whose results it builds on, `start_from` always among them; left out, all before it. Phases that
    do not need each other can train beside each other.
    steps, minutes, tokens: its budget, one of them. share: its part of a budget that a command gives for the whole run.
    trainable: patterns over parameter names (all if empty); one that matches nothing is an error.
    lora: {targets, rank, alpha, dropout}: train small factors beside the matrices that `targets` match, and merge them.
    """

    name: str = Field(pattern=r"^\w[\w .-]*$")  # a folder of the run
    trains: str
    objective: Part
    data: Part
    after: tuple[str, ...] | None = None
    start_from: str | None = None
    trainable: tuple[str, ...] = ()
    lora: dict[str, Any] | None = None
    tasks: dict[str, Weight] = Field(default_factory=dict)
    loss_weights: dict[str, Weight | tuple[Weight, ...]] = Field(default_factory=dict)
    optimizer: dict[str, Any] = Field(default_factory=dict)
    steps: int | None = Field(default=None, gt=0)
    minutes: float | None = Field(default=None, gt=0)
    tokens: int | None = Field(default=None, gt=0)
    share: float | None = Field(default=None, gt=0)
    batch: int = Field(default=16, gt=0)
    settings: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_budget(self):
        if sum(each is not None for each in (self.steps, self.minutes, self.tokens)) != 1:
            raise ValueError("a phase has a budget: exactly one of steps, minutes, tokens")
        return self


class Recipe(Strict):
    """A whole system, from what it hears to what it says, and how it came to be. Without stages it is a codec.

    weights: a model of the same streams and sizes (a directory, or a hub id), also in a published format: training
    begins with what it knows, with any phase.
    """

    system: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    paper: str | None = None
    description: str = ""
    sample_rate: int = Field(gt=0)
    tokenizers: dict[str, Part] = Field(default_factory=dict)
    encoders: dict[str, Part] = Field(default_factory=dict)
    streams: dict[str, Stream] = Field(min_length=1)
    stages: list[Stage] = Field(default_factory=list)
    interaction: Interaction | None = None
    weights: str | None = None
    training: list[Phase] = Field(default_factory=list)
    evaluation: list[Evaluation] = Field(default_factory=list)
    smoke: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _names_are_declared(self):
        for name, stream in self.streams.items():
            self._declared(f"streams.{name}.tokenizer", stream.tokenizer, self.tokenizers)
            self._declared(f"streams.{name}.encoder", stream.encoder, self.encoders)
            if isinstance(stream.clock, Clock):
                self._declared(f"streams.{name}.clock.of", stream.clock.of, self.streams)
            self._clock_ends(name)
        for stage in self.stages:
            for task_name, task in stage.tasks.items():
                for field in ("given", "fills"):
                    for cells in getattr(task, field):
                        path = f"stages.{stage.name}.tasks.{task_name}.{field}"
                        self._declared(path, stream_name(cells), self.streams)
            for name in (*stage.inputs, *stage.heads):
                self._declared(f"stages.{stage.name}.inputs/heads", name, self.streams)
        names = [stage.name for stage in self.stages]
        trained = {*names, *self.tokenizers, *self.encoders}
        done: dict[str, Phase] = {}
        for phase in self.training:
            self._declared(f"training.{phase.name}.trains", phase.trains, trained)
            self._declared(f"training.{phase.name}.start_from", phase.start_from, done)
            for name in phase.after or ():
                self._declared(f"training.{phase.name}.after", name, done)
            if phase.name in done:
                raise ValueError(f"training: two phases are named '{phase.name}'")
            done[phase.name] = phase
        for phase in self.training:
            needed = self.needs(phase.name)
            for other in self.training[: self.training.index(phase)]:
                both = self._parts(other) & self._parts(phase)
                if both and other.name not in needed:
                    raise ValueError(
                        f"training.{phase.name}.after: '{other.name}' trains '{both.pop()}' too: name it, or its "
                        "result would be lost"
                    )
        if self.interaction is not None:
            offline = self.interaction.kind == "offline"  # takes no turns: its roles count only where they are said
            for field in ("hears", "speaks", "writes", "transcribes"):
                if offline and field not in self.interaction.model_fields_set:
                    continue
                self._declared(f"interaction.{field}", getattr(self.interaction, field), self.streams)
        return self

    def _clock_ends(self, name: str) -> None:
        """Whether a stream's clock hangs on itself, by itself or through others."""
        seen, clock = [name], self.streams[name].clock
        while isinstance(clock, Clock) and clock.of in self.streams:
            if clock.of in seen:
                raise ValueError(f"streams.{name}.clock.of: {' of '.join([*seen, clock.of])}: a clock needs a rate")
            seen.append(clock.of)
            clock = self.streams[clock.of].clock

    def _parts(self, phase: Phase) -> set[str]:
        """What a phase trains: a tokenizer, an encoder, or a stage with the encoders of the streams."""
        stage = phase.trains in {stage.name for stage in self.stages}
        return {phase.trains, *(stream.encoder for stream in self.streams.values() if stage and stream.encoder)}

    @staticmethod
    def _declared(path: str, name: str | None, known: Any) -> None:
        if name is not None and name not in known:
            raise ValueError(f"{path}: '{name}' is not declared; there is {sorted(known) or 'nothing'}")

    def stage(self, name: str) -> Stage:
        """The stage of that name; KeyError where there is none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    def phase(self, name: str) -> Phase:
        """The training phase of that name; KeyError where there is none."""
        for phase in self.training:
            if phase.name == name:
                return phase
        raise KeyError(name)

    def needs(self, name: str) -> list[str]:
        """The phases that the phase of that name builds on, and those that they build on, in the recipe's order."""
        last = self.training.index(self.phase(name))
        found = {name}
        for index in range(last, -1, -1):  # names point backwards, so one pass finds them all
            phase = self.training[index]
            if phase.name in found:
                earlier = [each.name for each in self.training[:index]] if phase.after is None else phase.after
                found.update(earlier, [phase.start_from] if phase.start_from else [])
        return [phase.name for phase in self.training[:last] if phase.name in found]
