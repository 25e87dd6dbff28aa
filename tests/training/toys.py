"""Tasks small enough to train in a test: a regression with dropout, and a pair of adversaries."""

import time
from pathlib import Path

import torch
from torch import nn

from vivavoce.codecs import codec_of
from vivavoce.schema import Recipe, read_recipe
from vivavoce.training.codec_task import CodecTask
from vivavoce.training.task import Task, step_seed


class Regression(Task):
    """Learn y = x W with noise and dropout; a BatchNorm gives it buffers that move."""

    name = "regression"

    def __init__(self, size=16, norm=True, dropout=0.1, poison=None):
        with torch.random.fork_rng():
            torch.manual_seed(7)
            layers = [nn.Linear(8, 16), nn.BatchNorm1d(16) if norm else nn.Identity(), nn.ReLU()]
            weight = layers[0].weight.detach()  # laid out as our convolutions' weights are, which no file keeps
            layers[0].weight = nn.Parameter(weight.T.contiguous().T)
            self.net = nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(16, 4))
            self.truth = torch.randn(8, 4)
        self.size, self.poison, self.seen = size, poison, []

    def modules(self):
        return {"net": self.net}

    def batch(self, step, rank, world):
        self.seen.append((step, rank, world))
        g = torch.Generator().manual_seed(step_seed(3, step))
        x = torch.randn(self.size, 8, generator=g).chunk(world)[rank]
        if self.poison == step:
            x = x * float("nan")
        return {"x": x, "y": x @ self.truth}

    def loss(self, batch, step):
        error = (self.net(batch["x"]) - batch["y"]).square().mean()
        return {"loss": error, "rmse": error.sqrt()}

    def evaluate(self, step):
        batch = self.batch(10**6, 0, 1)
        return {"mse": float(self.loss(batch, 0)["loss"])}


class Adversaries(Task):
    """A generator of numbers near 3 and its critic; the critic updates two steps out of three."""

    name = "adversaries"

    def __init__(self):
        with torch.random.fork_rng():
            torch.manual_seed(11)
            self.generator, self.critic = nn.Linear(2, 1), nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
        self.steps_seen = 0

    def modules(self):
        return {"generator": self.generator, "critic": self.critic}

    def optimizers(self):
        return {"generator": ["generator"], "critic": ["critic"]}

    def batch(self, step, rank, world):
        g = torch.Generator().manual_seed(step_seed(5, step, rank))
        return 3 + 0.1 * torch.randn(32, 1, generator=g)

    def updates(self, batch, step):
        self.steps_seen += 1
        fake = self.generator(torch.randn(32, 2))
        if step % 3:
            real, false = self.critic(batch), self.critic(fake.detach())
            yield "critic", {"loss": (1 - real).relu().mean() + (1 + false).relu().mean()}
        yield "generator", {"loss": -self.critic(fake).mean(), "mean": fake.mean()}

    def state_dict(self):
        return {"steps_seen": self.steps_seen, "marks": [torch.tensor([1.5]), {"a": None}]}

    def load_state_dict(self, state):
        self.steps_seen = state["steps_seen"]
        assert state["marks"][0].item() == 1.5 and state["marks"][1] == {"a": None}


class Parts(Task):
    """Draws all parameters of modules towards `target` and a number that each step's batch and chance give.

    hold: a step that waits for the file `until`; from there on each takes `pause` seconds. poison: a step whose loss is
    NaN.
    """

    name = "parts"

    def __init__(self, modules, target=0.0, pause=0.0, hold=0, until="", poison=None):
        self.parts, self.target, self.pause, self.poison = modules, target, pause, poison
        self.hold, self.until = hold, Path(until)

    def modules(self):
        return self.parts

    def batch(self, step, rank, world):
        value = torch.randn((), generator=torch.Generator().manual_seed(step_seed(13, step, rank)))
        while step == self.hold and not self.until.exists():
            time.sleep(0.05)
        time.sleep(self.pause if step >= self.hold else 0)
        return value * float("nan") if step == self.poison else value

    def loss(self, batch, step):
        aim = self.target + batch + torch.randn(())
        return {"loss": sum((p - aim).square().mean() for m in self.parts.values() for p in m.parameters())}


def codec_task():
    """A codec with moving codebooks, begun by k-means, some entries of which are replaced, against discriminators."""
    sizes = {"sample_rate": 8000, "filters": 2, "ratios": [8, 4], "dim": 6, "codebooks": 2, "codebook_size": 16}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        codec = codec_of({"kind": "codec", **sizes, "quantizer": {"replace_every": 2}})
    chance = torch.Generator().manual_seed(6)
    clips = [0.3 * torch.randn(1, 4000, generator=chance) * torch.linspace(0, 1, 4000) for _ in range(4)]
    judges = {"members": [{"kind": "stft", "size": 64, "filters": 2}]}
    return CodecTask(codec, clips, seconds=0.1, batch=4, mel="speech", discriminators=judges, turns=1.0)


def parts_task(recipe, phase, model):
    """The task of a phase of `parts_recipe`; what works on the dialogue aims at the mean of the codec's weights."""
    system = model.system
    if phase.trains == "codec":
        return Parts({"codec": system.codec}, **phase.data.options)
    target = sum(float(p.detach().double().mean()) for p in system.codec.parameters())
    return Parts({"encoder": system.encoder, "stage": system.stage}, target, **phase.data.options)


def parts_recipe(**options) -> Recipe:
    """mini's smoke size with phases `voice` and `listen`, which do not need each other, and `converse`, which needs
    both. options: phase -> those of its data."""
    shared = {"objective": {"kind": "parts"}, "steps": 6}
    settings = {"log_every": 2, "ema": 0.5, "checkpoint_every": 2}
    both = {**shared, "settings": settings, "optimizer": {"learning_rate": 1e-2}}
    phases = [
        {**both, "name": "voice", "trains": "codec", "after": []},
        {**both, "name": "listen", "trains": "dialogue", "after": []},
        {**both, "name": "converse", "trains": "dialogue", "start_from": "listen"},
    ]
    training = [{**phase, "data": {"kind": "parts", **options.get(phase["name"], {})}} for phase in phases]
    return read_recipe("mini", "smoke", {"training": training})
