"""Tasks small enough to train in a test: a regression with dropout, and a pair of adversaries."""

import torch
from torch import nn

from vivavoce.training.task import Task, step_seed


class Regression(Task):
    """Learn y = x W with noise and dropout; a BatchNorm gives it buffers that move."""

    name = "regression"

    def __init__(self, size=16, norm=True, dropout=0.1, poison=None):
        with torch.random.fork_rng():
            torch.manual_seed(7)
            layers = [nn.Linear(8, 16), nn.BatchNorm1d(16) if norm else nn.Identity(), nn.ReLU()]
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
