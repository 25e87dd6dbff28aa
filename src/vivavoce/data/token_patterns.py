"""Made-up tokens with something to learn: a seeded Markov chain of words, spelled by every stream in its own way.

    words    w3           w1      w3              each of 1 to 3 ticks, always the same for a word
    text     t3           t1      t3              a stream in `order`: one token a word
    units    u3 u3 u3     u1 u1   u3 u3 u3        a stream at a rate: so many frames a tick (here 1)
    voice 1  (u + v)3 …                           a further level: the word's own value plus the first level's, modulo

Each word has two successors, a likely one and a rare one, so that a model can come down to far less than the entropy
of single tokens; what one stream says can be copied from another. Some tokens are noise. For tests and recipes that
show a layout without any audio.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from vivavoce.errors import RecipeError
from vivavoce.layouts import END, StreamSpec
from vivavoce.systems.token_system import Cells

LIKELY = 0.85


class TokenPatterns:
    """Rows by number: `batch(first, rows)` gives always the same.

    streams: name -> (what the layout knows of it, ids a level). words: least and most words of a row. kinds: how many
    words there are. noise: share of tokens drawn at random. ends: where an end token stands: behind each `stream`, or
    behind the `pieces` of each word. process: seed of the chain and its spelling; seed: of the rows.
    """

    def __init__(
        self,
        streams: Mapping[str, tuple[StreamSpec, int]],
        words: Sequence[int] = (3, 8),
        kinds: int = 8,
        noise: float = 0.03,
        ends: str = "stream",
        process: int = 0,
        seed: int = 0,
    ):
        if len(words) != 2 or not 1 <= words[0] <= words[1]:
            raise RecipeError(f"data.words: {list(words)}: give the least (at least 1) and the most words of a row")
        if ends not in ("stream", "pieces") or kinds < 2 or not 0 <= noise < 1:
            raise RecipeError(f"data: ends {ends} (stream, pieces), kinds {kinds} (at least 2), noise {noise} (0 to 1)")
        self.streams, self.words, self.noise, self.ends, self.seed = dict(streams), tuple(words), noise, ends, seed
        rates = [spec.rate for spec, _ in self.streams.values() if spec.rate is not None]
        self.frames = {name: self._frames_a_tick(spec, rates) for name, (spec, _) in self.streams.items()}
        random = np.random.default_rng(process)
        self.ticks = random.integers(1, 4, kinds)
        self.successors = np.stack([random.permutation(kinds)[:2] for _ in range(kinds)])
        self.spelling = {
            name: np.stack([random.permutation(max(size, kinds))[:kinds] % size for _ in range(spec.levels)])
            for name, (spec, size) in self.streams.items()
        }

    @staticmethod
    def _frames_a_tick(spec: StreamSpec, rates: Sequence[float]) -> int:
        """Frames of a stream in a tick of the slowest clock; 0: it has only an order."""
        if spec.rate is None:
            return 0
        frames = spec.rate / min(rates)
        if abs(frames - round(frames)) > 1e-6:
            raise RecipeError(f"data: '{spec.name}' at {spec.rate} Hz: no multiple of the slowest, {min(rates)} Hz")
        return round(frames)

    def row(self, number: int) -> tuple[dict[str, list[np.ndarray]], dict[str, list[int]]]:
        """Row `number`: stream -> ids of each level, and stream -> frames of each word."""
        random = np.random.default_rng([self.seed, number])
        count = int(random.integers(self.words[0], self.words[1] + 1))
        said = [int(random.integers(len(self.ticks)))]
        while len(said) < count:
            said.append(int(self.successors[said[-1], int(random.random() > LIKELY)]))
        values, counts = {}, {}
        for name, (spec, size) in self.streams.items():
            frames = [int(self.ticks[word]) * self.frames[name] or 1 for word in said]
            levels = self._spell(name, spec, size, np.repeat(said, frames), random)
            if spec.end is not None:
                levels, frames = self._ended(levels, frames, spec)
            values[name], counts[name] = levels, frames
        return values, counts

    def _spell(
        self, name: str, spec: StreamSpec, size: int, words: np.ndarray, random: np.random.Generator
    ) -> list[np.ndarray]:
        """Ids of every level for the words of all frames."""
        levels: list[np.ndarray] = []
        for level in range(spec.levels):
            ids = np.repeat(self.spelling[name][level][words], spec.cells(level))
            noisy = random.random(len(ids)) < self.noise
            ids = np.where(noisy, random.integers(size, size=len(ids)), ids)
            if levels:
                first = np.repeat(levels[0][:: spec.cells(0)], spec.cells(level))
                ids = (ids + first) % size
            levels.append(ids)
        return levels

    def _ended(
        self, levels: list[np.ndarray], frames: list[int], spec: StreamSpec
    ) -> tuple[list[np.ndarray], list[int]]:
        """The same with a frame of end tokens behind the stream, or behind each of its pieces."""
        places = np.cumsum(frames) if self.ends == "pieces" else np.array([sum(frames)])
        ended = [
            np.insert(ids, np.repeat(places * spec.cells(level), spec.cells(level)), spec.end or 0)
            for level, ids in enumerate(levels)
        ]
        if self.ends == "pieces":
            return ended, [n + 1 for n in frames]
        return ended, [*frames[:-1], frames[-1] + 1]

    def batch(self, first: int, rows: int) -> Cells:
        """Rows `first` to `first + rows - 1`; counts are `word/STREAM`."""
        made = [self.row(first + i) for i in range(rows)]
        values: dict[str, Tensor] = {}
        lengths: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        for name, (spec, _) in self.streams.items():
            sizes = [[len(ids) for ids in row[name]] for row, _ in made]
            cells = torch.full((rows, spec.levels, max(map(max, sizes))), -1)
            pieces = torch.full((rows, max(len(count[name]) for _, count in made)), END)
            for index, (row, count) in enumerate(made):
                for level, ids in enumerate(row[name]):
                    cells[index, level, : len(ids)] = torch.from_numpy(ids)
                pieces[index, : len(count[name])] = torch.tensor(count[name])
            values[name], lengths[name], counts[f"word/{name}"] = cells, torch.tensor(sizes), pieces
        return Cells(values, lengths, counts, torch.arange(first, first + rows))
