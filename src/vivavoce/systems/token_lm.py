"""`TokenLM`: a language model over tokens with its verbs, `fill` and `loglik`."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivavoce.audio import Audio
from vivavoce.errors import RequestError
from vivavoce.layouts import END, OPEN
from vivavoce.lm.grid import Prediction
from vivavoce.lm.logprob import score_predictions
from vivavoce.lm.packed import WHOLE
from vivavoce.systems.model import Model
from vivavoce.systems.token_system import PROMPT, Cells, TokenSystem

Segment = tuple[str, Any, bool]
VOCABULARIES = ("full", "stream")
LOGITS = 1 << 26  # that are computed at a time, of one stream


class TokenLM(Model):
    """A system over streams. Values are ids [T] or [levels, T], or frames [T, width]; Audio and text where a tokenizer
    or an encoder reads them.

    What a layout needs beside them stands among the values by its own name: `"word/voice": [3, 1, 2]` (frames of each
    word, chunk or turn; see `Given.counts`).
    """

    system: TokenSystem

    @property
    def verbs(self) -> dict[str, str]:
        """Verb -> native or derived."""
        return {"fill": "native", "loglik": "native"}

    def fill(
        self,
        task: str,
        given: Any = None,
        length: int | Sequence[int] | Mapping[str, int | Sequence[int]] | None = None,
        seed: int | Sequence[int] = 0,
        limit: int = 10_000,
    ) -> Any:
        """Fill the streams of a task: stream -> ids [levels, frames] int64; `audio` too, where a codec speaks them.

        given: stream -> value; a list of such mappings gives a list of results, each the same as alone. length: frames
        of all filled streams, or of each, prompts included (of a stream with an end token: at most); a number, or one
        an item. Left out: what the recipe's `decode.length` says. seed: one, or one an item. limit: columns at most.
        Cells that the layout drops, end tokens, and given streams are left out; a prompt is not.
        """
        items = given if isinstance(given, list) else [given or {}]
        seeds = [seed] * len(items) if isinstance(seed, int) else list(seed)
        if len(seeds) != len(items) or not items:
            raise RequestError(f"fill: {len(seeds)} seeds for {len(items)} items")
        self.system.task(task)
        allowed = {name.removesuffix(PROMPT) for name in self.system.task(task).given}
        for item in items:
            if strange := sorted(name for name in item if "/" not in name and name not in allowed):
                takes = ", ".join(sorted(allowed)) or "nothing"
                raise RequestError(f"fill: task '{task}' takes {takes}, not '{strange[0]}'")
            for name in self.system.task(task).given:
                if name not in item and not name.endswith(PROMPT):
                    raise RequestError(f"fill: task '{task}': '{name}' is to be given")
        cells = self._cells(items, "fill")
        lengths = self._lengths(task, cells, length, len(items))
        filled, _ = self.system.generate(task, cells, lengths, torch.tensor(seeds, device=self.device), limit)
        results = [self._result(task, filled, row) for row in range(len(items))]
        return results if isinstance(given, list) else results[0]

    def loglik(
        self, items: Sequence[Any], vocabulary: str = "full", seed: int = 0, task: str | None = None
    ) -> Any:
        """Log-probabilities of given tokens: stream -> (sum in nats, float64; number of tokens) for each item.

        items: a list of segments (stream, `audio` or `text`; value; scored?), or a list of such lists. Segments of one
        stream follow one another; of one that is not scored nothing counts. Levels are named `voice[0]`, `voice[1]`, ….
        vocabulary: `full` (end token included) or `stream` (the tokens alone; ends are not scored). The first token is
        scored too: the model has a begin vector. seed: of layouts with chance. task: in whose layout they stand (None:
        the stage's). Streams of frames are scored by densities, named `pitch/density`: those are no probabilities.
        """
        if vocabulary not in VOCABULARIES:
            raise RequestError(f"loglik: vocabulary '{vocabulary}': there are {', '.join(VOCABULARIES)}")
        if task is not None:
            self.system.task(task)
        single = bool(items) and isinstance(items[0], tuple)
        rows: list[Sequence[Segment]] = [items] if single else list(items)
        if not rows:
            return []
        given, marks = self._segments(rows)
        self._check_segments(dict.fromkeys(name for item in given for name in item if "/" not in name), task)
        results: list[dict[str, tuple[float, int]]] = [{} for _ in rows]
        with torch.inference_mode():
            for some in self._batches(marks):
                found = self._scored([given[n] for n in some], [marks[n] for n in some], vocabulary, seed, task)
                for n, scores in zip(some, found, strict=True):
                    results[n] = scores
        return results[0] if single else results

    def _batches(self, marks: Sequence[Mapping[str, Sequence[bool]]]) -> list[list[int]]:
        """Items that are scored together: of similar length, and as many as a device is best used by."""
        sizes = [sum(len(flags) for flags in mark.values()) for mark in marks]
        largest = max((max(self.system.streams[name].vocabulary, default=1) for name in self.system.filled), default=1)
        most = min(LOGITS // largest, 2048 if self.device.type == "cpu" else 16384)
        batches: list[list[int]] = []
        room = 0
        for number in sorted((n for n, size in enumerate(sizes) if size), key=lambda n: sizes[n]):
            if sizes[number] > room:
                batches.append([])
                room = most
            batches[-1].append(number)
            room -= sizes[number]
        return batches

    def _scored(
        self,
        items: Sequence[Mapping[str, Tensor]],
        marks: Sequence[Mapping[str, Sequence[bool]]],
        vocabulary: str,
        seed: int,
        task: str | None,
    ) -> list[dict[str, tuple[float, int]]]:
        """The log-probabilities of some items, read one behind another; logits are computed where they count."""
        cells = replace(self._cells(items, "loglik"), seeds=torch.full((len(items),), seed, device=self.device))
        known = {}
        for name in self.system.filled:
            flags = [torch.tensor(mark.get(name, []), dtype=torch.bool)[None] for mark in marks]
            known[name] = ~_padded(flags, False)[:, 0].to(self.device)
        predictions = self.system(cells, task, known, WHOLE)
        if vocabulary == "stream":
            predictions = {name: self._own(name, found) for name, found in predictions.items()}
        results: list[dict[str, tuple[float, int]]] = [{} for _ in items]
        for name, score in score_predictions(predictions, len(items)).items():
            stream, levels = self.system.streams[name], [slot.level for slot in self.system.stage.slots[name]]
            for level in range(stream.spec.levels):
                mine = [k for k, other in enumerate(levels) if other == level]
                key = name if stream.spec.levels == 1 else f"{name}[{level}]"
                key = f"{name}/density" if stream.width is not None else key
                sums, counts = score.sums[:, mine].sum(1).tolist(), score.counts[:, mine].sum(1).tolist()
                for result, total, count in zip(results, sums, counts, strict=True):
                    if count:
                        result[key] = (total, count)
        return results

    def _own(self, name: str, found: Prediction) -> Prediction:
        """The predictions over a stream's own tokens alone: its end tokens are neither possible nor scored."""
        if found.density is not None:
            return found
        size = self.system.streams[name].size
        logits = [logits[..., :size] for logits in found.logits]
        return replace(found, logits=logits, loss=found.loss & (found.targets < size))

    def _check_segments(self, names: Collection[str], task: str | None) -> None:
        """That the layout of the task has a place for every stream that the items speak of."""
        about = self.system.task(task) if task is not None else None
        used = {*about.fills, *(name.removesuffix(PROMPT) for name in about.given)} if about else set(names)
        for name in names:
            if name not in used:
                raise RequestError(f"loglik: task '{task}' has {', '.join(sorted(used))}, not '{name}'")
            if not any(name == stream for lane in self.system.layout_of(task).lane_cells for stream, _ in lane):
                tasks = [own for own in self.system.layouts if own is not None]
                hint = f"; task= names one that has: {', '.join(tasks)}" if tasks else ""
                raise RequestError(f"loglik: '{name}' has no place in the layout of {task or 'the stage'}{hint}")

    # -- values into cells --

    def _cells(self, items: Sequence[Mapping[str, Any]], verb: str) -> Cells:
        """Values of several items as a padded batch."""
        values: dict[str, Tensor] = {}
        lengths: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        frames: dict[str, Tensor] = {}
        for name in dict.fromkeys(name for item in items for name in item):
            where = f"{verb}: '{name}'"
            if "/" in name:
                rows = [torch.as_tensor(item.get(name, [])).long().reshape(-1) for item in items]
                counts[name] = _padded([row[None] for row in rows], END)[:, 0].to(self.device)
                continue
            if name not in self.system.streams:
                raise RequestError(f"{where}: no such stream; there are {', '.join(self.system.streams)}")
            stream = self.system.streams[name]
            nothing = torch.zeros(stream.spec.levels, 0, dtype=torch.int64)
            if stream.width is not None:
                nothing = torch.zeros(0, stream.width)
            rows = [stream.values(item[name], where) if name in item else nothing for item in items]
            lengths[name] = torch.tensor([stream.frames(row) for row in rows], device=self.device)
            if stream.width is not None:
                frames[name] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.device)
            else:
                values[name] = _padded(rows, -1).to(self.device)
        return Cells(values, lengths, counts, frames=frames)

    def _segments(
        self, rows: Sequence[Sequence[Segment]]
    ) -> tuple[list[dict[str, Any]], list[dict[str, list[bool]]]]:
        """The values of all items, stream -> cells, and which frames of each stream are scored."""
        items: list[dict[str, Any]] = []
        marks: list[dict[str, list[bool]]] = []
        for number, row in enumerate(rows):
            parts: dict[str, list[Tensor]] = {}
            item: dict[str, Any] = {}
            mark: dict[str, list[bool]] = {}
            for segment in row:
                if not isinstance(segment, tuple) or len(segment) != 3:
                    found = repr(segment)[:60]
                    raise RequestError(f"loglik: item {number}: a segment is (stream, value, scored), not {found}")
                name, value, scored = segment
                if "/" in name:
                    item[name] = value
                    continue
                name = self._named(name, value, f"loglik: item {number}")
                stream = self.system.streams[name]
                if scored and name not in self.system.filled:
                    raise RequestError(f"loglik: item {number}: '{name}' is never predicted, only given: not scored")
                cells_here = stream.values(value, f"loglik: item {number}, '{name}'")
                parts.setdefault(name, []).append(cells_here)
                mark[name] = mark.get(name, []) + [bool(scored)] * stream.frames(cells_here)
            along = {name: int(self.system.streams[name].width is None) for name in parts}
            items.append({**item, **{name: torch.cat(each, dim=along[name]) for name, each in parts.items()}})
            marks.append(mark)
        return items, marks

    def _named(self, name: str, value: Any, where: str) -> str:
        """The stream that a segment speaks of: by name, or the only one of a modality."""
        streams = self.system.streams
        if name in streams:
            return name
        found = [own for own, stream in streams.items() if stream.modality == name]
        if len(found) != 1:
            hint = f"streams of {name}: {', '.join(found) or 'none'}" if name in ("audio", "text") else "no such stream"
            raise RequestError(f"{where}: '{name}': {hint}; name one of {', '.join(streams)}")
        return found[0]

    # -- lengths and results --

    def _lengths(
        self, task: str, cells: Cells, length: int | Sequence[int] | Mapping[str, int | Sequence[int]] | None, rows: int
    ) -> dict[str, Tensor]:
        """Frames [B] of the filled streams, as requested or as the recipe's `decode.length` says."""
        found: dict[str, Tensor] = {}
        for name in self.system.task(task).fills:
            asked = length.get(name) if isinstance(length, Mapping) else length
            spec = self.system.streams[name].spec
            if asked is not None:
                each = [asked] * rows if isinstance(asked, int) else list(asked)
                if len(each) != rows:
                    raise RequestError(f"fill: {len(each)} lengths of '{name}' for {rows} items")
                if min(each) < 0:
                    raise RequestError(f"fill: length {min(each)} of '{name}' is negative")
                found[name] = torch.tensor(each, device=self.device)
                continue
            tables = [table for key, table in cells.counts.items() if key.split("/")[1:] == [name]]
            if tables and int(tables[0].max()) < OPEN:
                found[name] = tables[0].clamp(min=0).sum(1)
            elif name in self.system.followers(task) or (
                self.system.length in ("end", "requested", name)
                and (spec.end is not None or self.system.streams[name].end_frame is not None)
            ):
                continue
            elif (clock := self._clock(task, name, cells)) is not None:
                found[name] = clock
            else:
                raise RequestError(f"fill: nothing says how long '{name}' is to be: give length=FRAMES")
        for name in self.system.followers(task):
            leader = self.system.streams[self.system.length].spec.rate
            if name not in found and self.system.length in found:
                ratio = (self.system.streams[name].spec.rate or leader or 1.0) / (leader or 1.0)
                found[name] = (found[self.system.length] * ratio).round().long()
        return found

    def _clock(self, task: str, name: str, cells: Cells) -> Tensor | None:
        """Frames [B] of a stream that lasts as long as the recipe's `decode.length`, or the longest given one."""
        rate = self.system.streams[name].spec.rate
        whole = [given for given in self.system.task(task).given if given in cells.lengths]
        if self.system.length in self.system.streams:
            whole = [given for given in whole if given == self.system.length]
        frames: list[Tensor] = []
        for given in whole:
            theirs = self.system.streams[given].spec.rate
            if (rate is None) == (theirs is None):
                ratio = 1.0 if rate is None or theirs is None else rate / theirs
                frames.append((cells.lengths[given] * ratio).round().long())
        return torch.stack(frames).amax(0) if frames else None

    def _result(self, task: str, filled: Mapping[str, Tensor], row: int) -> dict[str, Any]:
        """One row's filled streams: ids [levels, frames], without what was dropped or ended them."""
        result: dict[str, Any] = {}
        for name in self.system.task(task).fills:
            stream = self.system.streams[name]
            ids = filled[name][row]
            if stream.width is not None:
                result[name] = ids[: self._frames_of(name, task, filled, row)].cpu().numpy()
                continue
            if len(set(stream.spec.ratios or (1,))) == 1:
                ids = ids[:, (ids >= 0).all(0)]
                if stream.spec.end is not None:
                    ids = ids[:, (ids != stream.spec.end).all(0)]
                if stream.end_frame is not None:
                    ids = ids[:, (ids != stream.end_frame).any(0)]
            else:
                ids = self._unequal(ids, stream)
            result[name] = ids.cpu().numpy()
            if stream.modality == "audio" and name == self._speaks:
                with torch.inference_mode():
                    said = ids.clamp(max=stream.size - 1) if stream.spare else ids  # ids that no codec knows
                    wave = stream.tokenizer.decode(said[None])[0]
                result["audio"] = Audio(wave.cpu().numpy().astype(np.float32), stream.tokenizer.sample_rate)
        return result

    def _frames_of(self, name: str, task: str, filled: Mapping[str, Tensor], row: int) -> int:
        """Frames of a filled stream of vectors: those of its leader, or as many as were placed."""
        placed = int((~filled[name][row].isnan()).any(-1).sum())
        if name in self.system.followers(task):
            leader = self.system.streams[self.system.length].spec
            ends = torch.eq(filled[self.system.length][row, 0], leader.end or 0).nonzero()
            return min(placed, int(ends[0]) // leader.cells(0)) if len(ends) else placed
        return placed

    @staticmethod
    def _unequal(ids: Tensor, stream: Any) -> Tensor:
        """Ids [levels, T] of levels with different rates: whole frames before the end, slower levels padded by -1."""
        ratios = stream.spec.ratios
        frames = min(int((ids[level] >= 0).sum()) // ratio for level, ratio in enumerate(ratios))
        if stream.spec.end is not None:
            ends = (ids[0, : frames * ratios[0]] == stream.spec.end).nonzero()
            frames = int(ends[0]) // ratios[0] if len(ends) else frames
        cut = torch.full((len(ratios), frames * max(ratios)), -1, dtype=torch.int64)
        for level, ratio in enumerate(ratios):
            cut[level, : frames * ratio] = ids[level, : frames * ratio]
        return cut

    @property
    def _speaks(self) -> str | None:
        return self.recipe.interaction.speaks if self.recipe.interaction else None


def _padded(rows: Sequence[Tensor], value: int | bool) -> Tensor:
    """Rows [levels, T of each] as one tensor [B, levels, longest]."""
    longest = max(row.shape[1] for row in rows)
    out = rows[0].new_full((len(rows), rows[0].shape[0], longest), value)
    for index, row in enumerate(rows):
        out[index, :, : row.shape[1]] = row
    return out
