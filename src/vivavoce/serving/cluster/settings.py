"""What a server of several processes may be told: the arguments of `vivavoce.serving.cluster.deploy:application`."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from vivavoce.serving.settings import ServerSettings


class ClusterSettings(BaseModel):
    """Seconds, unless a name says otherwise; what is not here is as `ServerSettings` has it.

    model: a name, a directory that is there on each machine, or a hub id. replicas: N, or "MIN:MAX" for as many as
    leave the share `spare` of all rows free. cpus, gpus: what each takes, as Ray counts (0: it is not counted). rows,
    queue, each, transcriber, ice: of one replica, as the options of `vivavoce talk`. host: the address that the server
    listens to. keys: a YAML file, read where the application is built. secret: what ephemeral keys are sealed with;
    without one, each deployment makes a new one. record: a folder on each machine. drain: how long conversations may go
    on when their replica is stopped. local: only this machine reaches the server. stats: how often replicas tell their
    free rows. look_back, upscale_delay, downscale_delay: as Ray Serve's autoscaling has them.
    """

    model_config = ConfigDict(extra="forbid")

    model: str = "mini"
    device: str = "auto"
    dtype: str | None = None
    transcriber: str | None = None
    replicas: str = "1"
    cpus: float = Field(1.0, ge=0)
    gpus: float = Field(0.0, ge=0)
    rows: int = Field(0, ge=0)
    queue: int = Field(64, ge=0)
    each: int = Field(16, ge=1)
    session: float = Field(1800.0, ge=1)
    idle: float = Field(120.0, ge=1)
    keys: Path | None = None
    secret: str | None = None
    origins: list[str] = []
    ice: list[str] = []
    host: str = "0.0.0.0"
    record: Path | None = None
    drain: float = Field(60.0, ge=0)
    spare: float = Field(0.25, ge=0, lt=1)
    stats: float = Field(0.5, gt=0)
    look_back: float = Field(20.0, gt=0)
    upscale_delay: float = Field(10.0, ge=0)
    downscale_delay: float = Field(300.0, ge=0)
    local: bool = False

    @field_validator("replicas", mode="before")
    @classmethod
    def _check_replicas(cls, value: Any) -> str:
        least, colon, most = str(value).partition(":")
        numbers = least.isdecimal() and (most.isdecimal() if colon else True)
        if not numbers or not 1 <= int(least) <= int(most or least):
            raise ValueError(f"'{value}': a number from 1 on, or MIN:MAX, is expected")
        return str(value)

    @property
    def bounds(self) -> tuple[int, int]:
        """The fewest and the most replicas."""
        least, _, most = self.replicas.partition(":")
        return int(least), int(most or least)

    def server(self) -> ServerSettings:
        """The settings of each replica's core."""
        return ServerSettings(rows=self.rows, queue=self.queue, session=self.session, idle=self.idle)

    def load(self) -> Any:
        """The model, on its device."""
        import vivavoce
        from vivavoce.systems.devices import placed, use_few_threads

        model = vivavoce.load(self.model, **placed(self.device, self.dtype))
        use_few_threads(model)
        return model

    def load_transcriber(self) -> Any:
        """The recogniser of what the user says, or None."""
        from vivavoce.evaluation.transcribers import load_transcriber

        return None if self.transcriber is None else load_transcriber(self.transcriber)
