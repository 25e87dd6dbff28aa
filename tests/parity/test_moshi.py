"""Moshi against Kyutai's moshi package: names and sizes of the published model; logits and tokens of small ones.

The package drops the first frame that it hears ("in the past" of the model); here what is heard first is frame 0, so
that its step n + 1 is our step n.
"""

import numpy as np
import pytest
import torch

import vivavoce
from moshi_models import CARD, LEVELS, TEXT, VARIANTS, directory, language_model
from peers import peer
from proves import proves
from vivavoce.lm import decoding
from vivavoce.lm.sampling import gumbel
from vivavoce.nn.streaming import State
from vivavoce.systems.imports import kyutai
from vivavoce.systems.imports.moshi import assembled
from vivavoce.systems.imports.pairs import check
from vivavoce.systems.token_system import Cells

lm = peer("moshi.models.lm")
loaders = peer("moshi.models.loaders")
STREAMS = ("text", "voice", "user")
LANES = 1 + 2 * LEVELS


@pytest.fixture(autouse=True)
def not_compiled(monkeypatch):
    """The package compiles its norms at their first use, which takes minutes here."""
    monkeypatch.setattr(peer("moshi.utils.compile"), "_compile_disabled", True)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """variant -> (their model, ours, loaded from the directory, the directory); each is made once."""
    made = {}

    def get(variant):
        if variant not in made:
            reference, config = language_model(variant)
            folder = directory(tmp_path_factory.mktemp("moshi"), reference, config)
            made[variant] = reference, vivavoce.load(folder), folder
        return made[variant]

    return get


@proves("moshi", "mechanism")
def test_the_published_size_has_their_names_shapes_and_number_of_weights():
    """Built without memory; every tensor of the package's model is where ours comes from, none is left over."""
    with torch.device("meta"):
        model = vivavoce.build("moshi")
    reference = lm.LMModel(device="meta", dtype=torch.bfloat16, **loaders._lm_kwargs)
    theirs = reference.state_dict()
    found = kyutai.options(kyutai.PUBLISHED, "published")
    pairs = kyutai.pairs(found)
    check(model.system.stage, pairs, theirs, "the package's model")  # names and shapes, none too many
    assert sum(p.numel() for p in model.system.stage.parameters()) == sum(t.numel() for t in theirs.values())
    assert sum(t.numel() for t in theirs.values()) == 7_687_729_152
    config = model.system.stage.backbone.config
    assert (config.context, config.norm_eps, config.rope_interleaved, config.inner) == (3000, 1e-8, True, 11264)
    assert model.system.layout.delays == {"text": [0], "voice": [0, *[1] * 7], "user": [0, *[1] * 7]}
    codec = model.system.codec
    recipe = assembled(model.recipe, codec, model.system.vocabularies["text"], "recipe")  # as an import builds it
    assert recipe.parameters == model.parameters
    lm_kwargs = {key: value for key, value in loaders._lm_kwargs.items() if key in kyutai.PUBLISHED}
    assert lm_kwargs == {key: kyutai.PUBLISHED[key] for key in lm_kwargs}


def cells(codes):
    """Codes [B, 1 + 16, T] of the package as the cells of a system."""
    values = {"text": codes[:, :1], "voice": codes[:, 1 : 1 + LEVELS], "user": codes[:, 1 + LEVELS :]}
    return Cells(values, {name: torch.full((len(codes),), codes.shape[2]) for name in STREAMS})


def random_codes(batch, frames, seed=3):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, CARD, (batch, LANES, frames), generator=generator)
    codes[:, 0] %= TEXT
    return codes


@proves("moshi", "weights")
@proves("moshi", "mechanism")
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_of_whole_rows(models, variant):
    """Text and every level, of longer rows than the context; what is to be learned is what they learn."""
    reference, model, _ = models(variant)
    codes, delays = random_codes(3, 17), reference.delays
    with torch.inference_mode():
        theirs, ours = reference(codes), model.system(cells(codes))
    levels = [("text", 0, theirs.text_logits[:, 0], theirs.text_mask[:, 0])]
    for k in range(reference.dep_q):
        levels.append((STREAMS[1 + k // LEVELS], k % LEVELS, theirs.logits[:, k], theirs.mask[:, k]))
    assert set(ours) == {name for name, *_ in levels}
    for lane, (name, k, logits, mask) in enumerate(levels):
        here = slice(delays[lane], delays[lane] + codes.shape[2])
        found = ours[name].logits[k][:, here]
        assert torch.equal(ours[name].loss[:, here, k], mask)
        assert int(ours[name].loss[..., k].sum()) == int(mask.sum())
        error = float((found[mask] - logits[mask]).abs().max() / logits[mask].std())
        assert error < 1e-4, f"{name}[{k}]: {error:.1e} of the deviation"
        assert found.shape[-1] == (TEXT if name == "text" else CARD)


class ToldCodes:
    """In place of a codec: the first samples of a frame are its codes."""

    sample_rate, hop, codebooks = 24000, 1920, LEVELS

    def encoder_state(self, rows):
        return State(emitted=torch.zeros(rows, dtype=torch.int64))

    def encode_step(self, wave, state, lengths=None, consume=False):
        one = torch.ones(len(wave), dtype=torch.int64) if lengths is None else (lengths > 0).long()
        return (wave[:, 0, :LEVELS, None] * 4096).round().long(), State(emitted=one)


def as_sound(codes):
    """Codes [..., 8] as frames [..., 1920]."""
    frames = np.zeros((*codes.shape[:-1], 1920), np.float32)
    frames[..., :LEVELS] = codes / 4096
    return frames


class Both:
    """Their generator and our rows, driven by the same codes, with the same random numbers; the logits of both."""

    def __init__(self, reference, model, rows, seeds, monkeypatch):
        self.reference, self.seeds, self.age = reference, list(seeds), [0] * rows
        self.theirs, self.ours, self.tie = {}, {}, False
        self.heard = [[] for _ in range(rows)]
        monkeypatch.setattr(lm, "sample_token", self.sample)
        draw = decoding.sample

        def watched(logits, sampling, seed, counter, *more):
            for row in range(len(logits)):
                self.ours.setdefault((int(seed[row]), int(counter[row])), logits[row])  # first: a held row is not heard
            return draw(logits, sampling, seed, counter, *more)

        monkeypatch.setattr(decoding, "sample", watched)
        monkeypatch.setattr(model.system.ear, "codec", ToldCodes())
        self.generator = lm.LMGen(reference, support_out_of_sync=True)
        self.streaming = self.generator.streaming(rows)
        self.streaming.__enter__()
        self.rows = model.duplex_rows(rows)
        for row, seed in enumerate(seeds):
            self.rows.reset(row, seed)
        self.their_step(np.zeros((rows, LEVELS), np.int64), [True] * rows)

    def sample(self, logits, use_sampling, temperature, top_k):
        """Their sampler, its noise ours: that of the row's seed, its age and the lane."""
        rows = logits[:, 0, 0]
        chosen, indices = torch.softmax(rows / temperature, dim=-1).topk(min(top_k, rows.shape[-1]), dim=-1)
        counters = [age * LANES + self.lane for age in self.age]
        for row, (seed, counter) in enumerate(zip(self.seeds, counters, strict=True)):
            if self.active[row]:
                self.theirs[seed, counter] = rows[row].clone()
        noise = gumbel(torch.tensor(self.seeds)[:, None], torch.tensor(counters)[:, None], indices)
        picked = indices.gather(1, (chosen.log() + noise).argmax(-1, keepdim=True))
        self.lane += 1
        return picked[:, None]

    def their_step(self, codes, active):
        self.lane, self.active = 0, active
        self.generator.set_exec_mask(torch.tensor(active))
        both = self.reference.dep_q == 2 * LEVELS
        for row in range(len(active)):
            if active[row]:
                self.heard[row].append(codes[row])
                self.tell(row) if both else None
        given = torch.as_tensor(codes)[:, : 0 if both else LEVELS, None]
        out = self.generator.step(given)
        self.age = [age + on for age, on in zip(self.age, active, strict=True)]
        return out

    def tell(self, row):
        """Where the user's levels are predicted too, what is heard takes their place in the package's cache."""
        cache = self.generator._streaming_state.cache
        for k, delay in enumerate(self.reference.delays[1 + LEVELS :]):
            if self.age[row] >= delay:
                cache[row, 1 + LEVELS + k, self.age[row] % cache.shape[2]] = int(self.heard[row][-1 - delay][k])

    def step(self, codes, active):
        out = self.their_step(codes, active)
        return out, self.rows.step(as_sound(codes), active)

    def reset(self, row, seed):
        rows = len(self.seeds)
        alone = [other == row for other in range(rows)]
        self.generator.reset_streaming(torch.tensor(alone))
        self.seeds[row], self.age[row], self.heard[row] = seed, 0, []
        self.their_step(np.zeros((rows, LEVELS), np.int64), alone)
        self.rows.reset(row, seed)


@proves("moshi", "weights")
@proves("moshi", "mechanism")
@pytest.mark.parametrize("variant, rows", [("published", 1), *((variant, 3) for variant in VARIANTS)])
def test_streaming_steps_and_sampled_tokens(models, variant, rows, monkeypatch):
    """Logits of every step and every token as LMGen has them: rows held now and then, one reset in the middle."""
    reference, model, _ = models(variant)
    chance = np.random.default_rng(0)
    both = Both(reference, model, rows, [11, 12, 13][:rows], monkeypatch)
    said = 0
    for tick in range(16):
        if tick == 7:
            both.reset(rows - 1, 99)
        active = [tick % 5 != 3 or row != 0 or rows == 1 for row in range(rows)]
        theirs, ours = both.step(chance.integers(0, CARD, (rows, LEVELS)), active)
        for row in range(rows):
            if not active[row]:
                assert ours[row] is None
                continue
            expected = theirs[row, : 1 + LEVELS, 0].clamp(min=-1).tolist()
            assert [*ours[row].tokens["text"], *ours[row].tokens["voice"]] == expected
            if expected[0] >= 0:
                said += 1
    both.streaming.__exit__(None, None, None)
    assert said >= 16 * rows - 8
    there = [key for key in both.ours if key[1] // LANES >= reference.delays[key[1] % LANES]]  # no cells before a delay
    compared = [key for key in there if key in both.theirs]
    assert len(compared) > 15 * rows * (1 + LEVELS) - 60
    for key in compared:
        error = float((both.ours[key] - both.theirs[key]).abs().max() / both.theirs[key].std())
        assert error < 1e-4, f"seed and counter {key}: {error:.1e} of the deviation"


def test_a_conversation_read_at_once_is_the_conversation(models, monkeypatch):
    """Streaming is offline: the log-probabilities of what was said, given what was heard."""
    _, model, _ = models("published")
    drawn, draw = {}, decoding.sample

    def watched(logits, sampling, seed, counter, *more):
        ids = draw(logits, sampling, seed, counter, *more)
        drawn[int(counter[0])] = float(logits[0].double().log_softmax(-1)[ids[0]])
        return ids

    monkeypatch.setattr(decoding, "sample", watched)
    signal = np.random.default_rng(1).normal(0, 0.1, (9, 1920)).astype(np.float32)
    session = model.duplex(5)
    said = [session.step(frame) for frame in signal]
    monkeypatch.undo()
    user = vivavoce.Audio(signal.reshape(1, -1), 24000)
    streams = {name: np.array([out.tokens[name] for out in said]).T for name in ("text", "voice")}
    found = model.loglik([("user", user, False), *((name, ids, True) for name, ids in streams.items())])
    assert found.keys() == {"text", *(f"voice[{k}]" for k in range(LEVELS))}
    for lane, (name, delay) in enumerate([("text", 0), ("voice[0]", 0), *((f"voice[{k}]", 1) for k in range(1, 8))]):
        total, count = found[name]
        assert count == 9 - delay  # of the last frame, levels that are late are said after it
        expected = sum(drawn[(frame + delay) * LANES + lane] for frame in range(count))
        assert abs(total - expected) < 1e-3 * count, name
