"""The one training loop: tokenizers, vocoders and language models, one update a step or several adversarial ones.

Everything that happens in a step is a function of the weights and the step's number: batch, dropout, learning rate (for
a budget in steps). So train(2N) and train(N), kill, train(N) end in the same weights, bit for bit.
"""

import math
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vivavoce.errors import RecipeError, RequestError
from vivavoce.lm.lora import load_network, without_lora
from vivavoce.nn.weights import load_module, read_safetensors
from vivavoce.training import checkpoint, sharding
from vivavoce.training.batches import batches, to_device
from vivavoce.training.distributed import Ranks
from vivavoce.training.ema import WeightAverage
from vivavoce.training.errors import Interrupted, TrainingError
from vivavoce.training.freezing import freeze, train_mode
from vivavoce.training.metrics import MetricsLog, Utilisation, Window
from vivavoce.training.optimizers import build_optimizer, factor, set_rate
from vivavoce.training.progress import Progress
from vivavoce.training.run_directory import RunDirectory
from vivavoce.training.settings import PhaseSettings
from vivavoce.training.task import Task, seed_everything, step_seed


def train_phase(
    task: Task,
    run: RunDirectory,
    settings: PhaseSettings,
    patience: float = 0.0,
    needs: Mapping[str, str] | None = None,
) -> None:
    """Train one phase to the end of its budget, from its newest checkpoint if there is one.

    Afterwards the modules hold the last weights, `run` the last checkpoints (with averaged weights, if asked for),
    metrics, samples and the report. A finished phase is only loaded. Raises TrainingError where it cannot go on;
    SIGINT and SIGTERM end it after the present step with a checkpoint, as Interrupted. Another process that trains the
    phase has `patience` seconds to save and end. `needs`: phase -> digest of the result that this one starts from; its
    checkpoints keep it.
    """
    ranks = Ranks.current(settings.device)
    with run.training(settings.name, patience) if ranks.first else nullcontext():
        phase = Phase(task, run, settings, ranks, needs)
        phase.restore()
        if not phase.finished:
            try:
                with stop_signals() as signals:
                    phase.train(signals)
            except OSError as error:
                raise TrainingError(
                    f"phase '{settings.name}', step {phase.step}: "
                    f"cannot write {error.filename or run.path}: {error.strerror or error}; "
                    f"last good checkpoint: {checkpoint.latest_path(phase.folder) or 'none'}. "
                    "Make room, or mend what is in its way, and start the same command again: it goes on from there"
                ) from error
    ranks.wait()


class Phase:
    """A phase while it trains: modules, optimizers, average, step number and time."""

    def __init__(
        self,
        task: Task,
        run: RunDirectory,
        settings: PhaseSettings,
        ranks: Ranks,
        needs: Mapping[str, str] | None = None,
    ):
        self.task, self.run, self.settings, self.ranks = task, run, settings, ranks
        self.device = torch.device(settings.device)
        self.modules = dict(task.modules())
        for module in self.modules.values():
            module.to(self.device)
        where = f"phase '{settings.name}'"
        if settings.tokens is not None and not task.counts_tokens:
            raise RecipeError(f"{where}: tokens: this task counts none; give it steps or minutes")
        if settings.recompute:
            sharding.recompute(self.modules, where)
        if settings.shard:
            if not task.even or len(task.optimizers()) > 1:
                why = "several optimizers" if task.even else "rows of several tasks in a batch (mix: rows)"
                raise RecipeError(f"{where}: shard: not for {why}: its processes would wait for each other")
            sharding.shard(self.modules, ranks, where)
        trained = freeze(self.modules, settings.trainable, settings.frozen)
        self.parameters = owned(task, trained)
        self.optimizers = {
            name: build_optimizer(mine, settings.optimizer_named(name)) for name, mine in self.parameters.items()
        }
        self.needs = dict(needs or {})
        self.averaging, averaged = next(iter(task.optimizers().items()))
        self.average = (
            WeightAverage({key: self.modules[key] for key in averaged}, settings.ema) if settings.ema else None
        )
        self.step, self.elapsed, self.tokens, self.finished = 0, 0.0, 0, False
        self.window = Window()
        self.used: Utilisation | None = None  # while it trains

    # -- what is on disk --

    @property
    def folder(self):
        return self.run.checkpoints(self.settings.name)

    def restore(self) -> None:
        """Go to the newest checkpoint; at a phase's beginning, to the weights that it starts from."""
        saved = checkpoint.latest(self.folder)
        if saved is None:
            self._start_from()
            tensors = [t for module in self.modules.values() for t in module.state_dict().values()]
            self.ranks.broadcast(t for t in tensors if t is sharding.local(t))
        else:
            for name, module in self.modules.items():
                mine = sharding.spread(module, saved.modules.get(name, {}))
                load_module(module, mine, f"{self.folder} ({name})")
            for name, optimizer in self.optimizers.items():
                self._load_optimizer(optimizer, saved.state["optimizers"].get(name, {}), name)
            self.task.load_state_dict(saved.state["task"])
            self.needs = dict(saved.needs)  # what it was begun on, not what lies there now
            self.window = Window(saved.state["window"])
            self.step, self.elapsed = saved.step, saved.elapsed
            self.tokens = int(saved.state.get("tokens", 0))
            self.finished = saved.finished and self.progress() >= 1  # a longer budget goes on
        if self.average is not None:
            self.average = WeightAverage(self.average.modules, self.average.decay)
            for name, averages in (saved.averages if saved else {}).items():
                for key, value in averages.items():
                    own = self.average.shadow[name][key]
                    own.copy_(sharding.like(own, value))

    def save(self, finished: bool = False) -> None:
        """Write a checkpoint (first rank) of whole tensors: it does not say how many processes there were."""
        self.finished = finished
        modules = {name: self._whole(module.state_dict()) for name, module in self.modules.items()}
        averages = {name: self._whole(mine) for name, mine in (self.average.shadow if self.average else {}).items()}
        optimizers = {name: self._optimizer_state(name) for name in self.optimizers}
        if self.ranks.first:
            window = self.window.sums
            state: dict[str, Any] = {"optimizers": optimizers, "task": self.task.state_dict(), "window": window}
            if self.tokens:
                state["tokens"] = self.tokens
            saved = checkpoint.Checkpoint(
                step=self.step,
                elapsed=self.elapsed,
                finished=finished,
                modules=modules,
                averages=averages,
                state=state,
                needs=self.needs,
            )
            checkpoint.save(saved, self.folder, self.settings.keep)
        self.ranks.wait()

    def _start_from(self) -> None:
        if self.settings.start_from is None:
            return
        files = self.run.weights(self.settings.start_from)
        shared = [name for name in self.modules if name in files]
        if not shared:
            raise RequestError(
                f"phase '{self.settings.name}' starts from '{self.settings.start_from}', which has none of its modules "
                f"({', '.join(self.modules)}) but {', '.join(files)}"
            )
        for name in shared:
            tensors = without_lora(read_safetensors(files[name]))
            load_network(self.modules[name], sharding.spread(self.modules[name], tensors), str(files[name]))

    def _whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors, those that are spread over the processes gathered where the first one writes them."""
        found = {}
        for name, tensor in tensors.items():
            gathered = sharding.whole(tensor)
            found[name] = gathered if gathered is tensor or not self.ranks.first else gathered.cpu()
        return found

    def _optimizer_state(self, name: str) -> dict:
        optimizer = self.optimizers[name]
        return {
            key: self._whole(optimizer.state[p]) for key, p in self.parameters[name].items() if p in optimizer.state
        }

    def _load_optimizer(self, optimizer: torch.optim.Optimizer, state: Mapping, name: str) -> None:
        own = optimizer.state_dict()  # torch numbers parameters group by group
        order = [p for group in optimizer.param_groups for p in group["params"]]
        names = {id(p): key for key, p in self.parameters[name].items()}
        own["state"] = {
            i: {key: _laid_out_as(p, value) for key, value in state[names[id(p)]].items()}
            for i, p in enumerate(order)
            if names[id(p)] in state
        }
        optimizer.load_state_dict(own)

    # -- the loop --

    def train(self, signals: list[int]) -> None:
        """From the present step to the end of the budget."""
        settings, ranks = self.settings, self.ranks
        log = MetricsLog(self.run, settings.name, self.step) if ranks.first else None
        bar = Progress(settings.name, settings.steps, shown=ranks.first)
        source = batches(self.task, self.step, ranks.rank, ranks.world, settings.accumulate, settings.workers)
        if self.step:
            bar.say(f"goes on after step {self.step}")
        train_mode(self.modules)
        (progress,) = ranks.agree(self.progress())
        self.used = Utilisation(self.device, getattr(torch, settings.dtype)) if progress < 1 else None
        began = time.monotonic() - self.elapsed
        saved_at = time.monotonic()
        try:
            while progress < 1:
                tokens = self.tokens
                if self.used is not None:
                    self.used.begin()
                values = self.advance(source, progress)
                if self.used is not None:
                    self.used.step(self.step, self.tokens - tokens)
                self.step += 1
                self.elapsed = time.monotonic() - began
                last, (self.elapsed, progress) = values, ranks.agree(self.elapsed, self.progress())
                done, stop = progress >= 1, ranks.any(bool(signals))
                self.window.add(values)
                if log is not None and (self.step % settings.log_every == 0 or done):
                    log.write(self.step, {**self.window.means(), **self._spent()})
                elif self.step % settings.log_every == 0:
                    self.window.means()
                bar.update(self.step, progress, last, self.used.whole if self.used else None)
                if self.step % settings.evaluate_every == 0 or done:
                    self._evaluate(log, bar)
                if self.step % settings.sample_every == 0 or done:
                    self._sample()
                due = ranks.any(time.monotonic() - saved_at > 60 * settings.checkpoint_minutes)
                if self.step % settings.checkpoint_every == 0 or due or done or stop:
                    self.elapsed = time.monotonic() - began
                    self.save(finished=done)
                    saved_at = time.monotonic()
                if stop and not done:
                    raise Interrupted(
                        f"phase '{settings.name}' was stopped after step {self.step} and saved; "
                        "the same command goes on"
                    )
        finally:
            if self.used is not None and self.used.whole is not None:
                bar.say(str(self.used))
            bar.close()
        if not self.finished:  # the budget had been spent before the first step
            self.save(finished=True)
        if ranks.first:
            from vivavoce.training.report import write_report

            write_report(self.run)

    def _spent(self) -> dict[str, float]:
        """What a line of the metrics says of time: tokens, the share of the machine (`mfu`), seconds."""
        spent: dict[str, float] = {"tokens": self.tokens} if self.tokens else {}
        if self.used is not None and (share := self.used.latest()) is not None:
            spent["mfu"] = share
        return {**spent, "seconds": self.elapsed}

    def progress(self) -> float:
        """Share of the budget that is spent, 0 to 1."""
        shares = [0.0]
        if self.settings.steps is not None:
            shares.append(self.step / self.settings.steps)
        if self.settings.minutes is not None:
            shares.append(self.elapsed / (60 * self.settings.minutes))
        if self.settings.tokens is not None:
            shares.append(self.tokens / self.settings.tokens)
        return min(max(shares), 1.0)

    def advance(self, source: Iterator, progress: float) -> dict[str, float]:
        """One step: all of the task's updates. Returns its logged values, averaged over ranks and shares."""
        settings = self.settings
        shares = [to_device(next(source), self.device) for _ in range(settings.accumulate)]
        updates = [self.task.updates(batch, self.step) for batch in shares]
        logged: dict[str, float] = {}
        number = 0
        tokens = torch.zeros((), dtype=torch.int64, device=self.device)
        while True:
            total = torch.zeros((), device=self.device)
            sums: dict[str, Tensor] = {}
            name = None
            with self._counting() as counted:
                for part, update in enumerate(updates):
                    share = self.ranks.rank * settings.accumulate + part
                    seed_everything(step_seed(settings.seed, settings.name, self.step, number, share))
                    with self._precision():
                        item = next(update, None)
                    if item is None:
                        continue
                    if name is None:
                        name = item[0]
                        counted.append(name)
                        optimizer, parameters = self._owner(name)
                        optimizer.zero_grad(set_to_none=True)
                    losses = dict(item[1])
                    weight = losses.pop("weight", None)
                    tokens = tokens + losses.pop("tokens", 0)
                    loss = losses["loss"] if weight is None else losses["loss"] * weight.detach()
                    # only this optimizer's parameters: a generator's loss leaves no gradient in the discriminator
                    loss.backward(inputs=None if settings.shard else parameters)
                    count = torch.ones((), device=self.device) if weight is None else weight.detach().float()
                    total = total + count
                    for key, value in losses.items():
                        sums[key] = sums.get(key, torch.zeros((), device=self.device)) + value.detach().float() * count
            if name is None:
                self.ranks.sum([tokens])
                self.tokens += int(tokens)
                return logged
            chosen = settings.optimizer_named(name)
            rate = factor(chosen, self.step, progress) * chosen.learning_rate
            set_rate(optimizer, rate)
            norm = self._gradients(parameters, total, sums, chosen.clip)
            values = dict(zip([*sums, "grad_norm"], torch.stack([*sums.values(), norm]).tolist()))
            self._check(values, name)
            optimizer.step()
            several = len(self.optimizers) > 1
            values["learning_rate"] = rate
            logged.update({f"{key}/{name}" if several and key in _OWN else key: v for key, v in values.items()})
            if self.average is not None and name == self.averaging:
                self.average.update(self.step)
            self._share_buffers()
            number += 1

    def _counting(self) -> AbstractContextManager[list[str]]:
        """Around an update, whose name the list takes: its operations may be counted."""
        return nullcontext([]) if self.used is None else self.used.counting()

    def _owner(self, name: str):
        if name not in self.optimizers:
            raise RequestError(
                f"task '{self.task.name}' updates '{name}' in phase '{self.settings.name}', where that optimizer has "
                f"nothing to train; it has {', '.join(self.optimizers)}"
            )
        return self.optimizers[name], list(self.parameters[name].values())

    def _gradients(self, parameters, total: Tensor, sums: dict[str, Tensor], clip: float | None) -> Tensor:
        """Gradients and logged sums become weighted means over ranks and shares; returns the gradients' norm."""
        plain = [p for p in parameters if not sharding.divided(p)]
        self.ranks.sum_gradients(plain)
        if self.ranks.world > 1:
            stacked = torch.stack([total, *sums.values()])
            self.ranks.sum([stacked])
            total = stacked[0]
            sums.update(zip(sums, stacked[1:]))
        scale = torch.where(total == 0, torch.ones_like(total), total)
        for key in sums:
            sums[key] = sums[key] / scale
        gradients = [p.grad for p in plain if p.grad is not None]
        if gradients and not (self.ranks.world == 1 and float(scale) == 1.0):
            torch._foreach_div_(gradients, scale)
        if len(plain) < len(parameters):
            spread = [sharding.local(p.grad) for p in parameters if p is not sharding.local(p) and p.grad is not None]
            torch._foreach_mul_(spread, self.ranks.world / scale)  # these are means over processes already
            return sharding.clip(parameters, clip if clip is not None else math.inf, self.ranks)
        return torch.nn.utils.clip_grad_norm_(parameters, clip if clip is not None else math.inf)

    def _precision(self):
        if self.settings.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, getattr(torch, self.settings.dtype))

    def _share_buffers(self) -> None:
        if self.ranks.world > 1:
            self.ranks.broadcast(buffer for module in self.modules.values() for buffer in module.buffers())

    def _check(self, values: Mapping[str, float], name: str) -> None:
        wrong = [key for key, value in values.items() if not math.isfinite(value)]
        if not wrong:
            return
        settings, accumulate, ranks = self.settings, self.settings.accumulate, self.ranks
        share = ranks.rank * accumulate
        seed = step_seed(settings.seed, settings.name, self.step, 0, share)
        raise TrainingError(
            f"phase '{settings.name}', step {self.step}, optimizer '{name}': {wrong[0]} is {values[wrong[0]]}. "
            f"The batch is task.batch({self.step}, {share}, {ranks.world * accumulate}), the step's seed {seed}; "
            f"last good checkpoint: {checkpoint.latest_path(self.folder) or 'none'}. "
            "Lower the learning rate or the clip norm, lengthen the warm-up, or look at that batch"
        )

    # -- between steps --

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """Eval mode, no gradients, averaged weights; randomness of its own."""
        for module in self.modules.values():
            module.eval()
        seed_everything(step_seed(self.settings.seed, self.settings.name, self.step, "evaluate"))
        with torch.no_grad(), self.average.applied() if self.average else nullcontext():
            yield
        train_mode(self.modules)

    def _evaluate(self, log: MetricsLog | None, bar: Progress) -> None:
        if log is not None or self.settings.shard:  # layers that are spread compute only where all do
            with self._looking():
                figures = dict(self.task.evaluate(self.step))
            if figures and log is not None:
                log.write(self.step, {f"evaluate/{key}": float(value) for key, value in figures.items()})
                bar.say(f"step {self.step}: " + "  ".join(f"{key} {value:.4g}" for key, value in figures.items()))
        self.ranks.wait()

    def _sample(self) -> None:
        if self.ranks.first:
            folder = self.run.samples(self.settings.name, self.step)
            folder.mkdir(parents=True, exist_ok=True)
            with self._looking():
                self.task.samples(folder, self.step)
            if not any(folder.iterdir()):
                folder.rmdir()
        elif self.settings.shard:
            with self._looking(), tempfile.TemporaryDirectory() as aside:
                self.task.samples(Path(aside), self.step)
        self.ranks.wait()


def owned(task: Task, trained: Mapping[str, nn.Parameter]) -> dict[str, dict[str, nn.Parameter]]:
    """Optimizer name -> those of the `trained` parameters (by full name) that are its own; none without any."""
    found = {
        name: {key: p for key, p in trained.items() if key.split(".", 1)[0] in modules}
        for name, modules in task.optimizers().items()
    }
    return {name: mine for name, mine in found.items() if mine}


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """`value` with the strides of `parameter`, where it has its shape: a fused optimizer goes through the memory of
    both side by side, and a file keeps no strides."""
    if value.shape != parameter.shape:
        return value
    value = sharding.like(parameter, value)
    return value if value is not sharding.local(value) else torch.empty_like(parameter).copy_(value)


_OWN = ("loss", "grad_norm", "learning_rate")  # logged per optimizer where there are several


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM fill, so that a step is finished and saved; a second SIGINT ends at once."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # signals belong to the main thread
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
