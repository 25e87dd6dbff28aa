"""Flow matching of mel frames: a stream solves the equation of the whole, the loss is the paper's, and it learns."""

import math
from itertools import pairwise

import pytest
import torch

from proves import proves
from vivavoce.errors import RecipeError, RequestError
from vivavoce.nn.chance import normal
from vivavoce.nn.noise import seeded
from vivavoce.nn.streaming import join_rows
from vivavoce.vocoders.flow_matching import SIGMA, FlowConfig, TokenToMel

TINY = dict(
    tokens=8, mels=4, speaker=5, width=16, heads=2, feedforward=24, layers=1, upper=1, ahead=2, chunk=4, left=1,
    channels=16, estimator_heads=2, head_dim=8, blocks=1, middle=1, steps=4,
)  # fmt: skip
PROMPT = torch.randn(1, 6, 4, dtype=torch.float64)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return TokenToMel(FlowConfig(**TINY)).double().eval()


def spoken(model, tokens, speaker=None, prompt=None, size=None, seed=0):
    """The mel frames of tokens [1, T], `size` at a time."""
    state = model.told(model.initial_state(1), speaker, prompt)
    state, pieces = seeded(state, torch.tensor([seed])), []
    for piece in model.embed(tokens).split(size or tokens.shape[1], dim=1):
        y, state = model.step(piece, state)
        pieces.append((y, state.emitted))
    y, state = model.flush(state)
    return join_rows([*pieces, (y, state.emitted)])[0]


@proves("cosyvoice2-s3-v2", "mechanism")
@torch.no_grad()
def test_a_stream_solves_the_equation_of_the_whole(model):
    """Token by token as all at once, written down here: every frame through chunk masks alone, no memory carried."""
    tokens, speaker = torch.randint(8, (1, 19)), torch.randn(1, 5, dtype=torch.float64)
    rough = model.parts[0](model.embed(tokens))
    size = rough.shape[1]
    given = torch.zeros(1, size, 4, dtype=torch.float64)
    given[:, :6] = PROMPT
    voice = model.voice(speaker / speaker.norm())[:, None].expand(-1, size, -1)
    y = normal(torch.tensor(0), torch.arange(size)[None, :, None], torch.arange(4)).double()
    times = [1 - math.cos(step / 4 * math.pi / 2) for step in range(5)]
    for now, then in pairwise(times):
        told, free = (
            model.flow.estimator.step(
                torch.cat([y, *beside], dim=-1), torch.tensor([now]),
                model.flow.estimator.initial_state(1, y.device, y.dtype),
            )[0]
            for beside in ((rough, voice, given), [torch.zeros_like(y)] * 3)
        )  # fmt: skip
        y = y + (then - now) * (1.7 * told - 0.7 * free)
    for chunk in (None, 1, 5):
        torch.testing.assert_close(spoken(model, tokens, speaker, PROMPT, chunk), y, atol=1e-9, rtol=0)
    # What was said stays said: the tokens behind a chunk and the two heard ahead change nothing of it.
    other = torch.cat([tokens[:, :10], (tokens[:, 10:] + 1) % 8], dim=1)
    again = spoken(model, other, speaker, PROMPT)
    assert torch.equal(again[:, :16], spoken(model, tokens, speaker, PROMPT)[:, :16])
    assert not torch.allclose(again[:, 16:24], y[:, 16:24])


@torch.no_grad()
def test_a_seed_gives_the_same_sound_in_any_batch(model):
    tokens = torch.randint(8, (3, 9))
    state = seeded(model.initial_state(3), torch.tensor([4, 5, 4]))
    y, state = model.step(model.embed(tokens), state)
    batch = torch.cat([y[:, : int(state.emitted[0])], model.flush(state)[0]], dim=1)
    for row, seed in enumerate((4, 5, 4)):
        torch.testing.assert_close(batch[row : row + 1], spoken(model, tokens[row : row + 1], seed=seed))
    assert not torch.allclose(spoken(model, tokens[:1], seed=5), batch[:1])


@torch.no_grad()
def test_voice_and_prompt_are_heard(model):
    tokens, voices = torch.randint(8, (1, 9)), torch.randn(2, 1, 5, dtype=torch.float64)
    nobody, one, other = (spoken(model, tokens, speaker) for speaker in (None, *voices))
    assert not torch.allclose(one, other) and not torch.allclose(one, nobody)
    assert torch.equal(spoken(model, tokens, torch.zeros(1, 5)), nobody)
    torch.testing.assert_close(spoken(model, tokens, 3 * voices[0]), one)  # its direction alone
    assert not torch.allclose(spoken(model, tokens, None, PROMPT), nobody)
    short = {"speaker": torch.zeros(1, 4)}, {"prompt": torch.zeros(1, 6, 3)}
    for wrong, message in zip(short, ("vectors", "mel frames")):
        with pytest.raises(RequestError, match=message):
            model.told(model.initial_state(1), **wrong)


def test_the_loss_is_that_of_a_straight_path(model, monkeypatch):
    """No distance where the estimator gives the path's velocity; a fifth of the rows are told nothing; prompts stand at
    the beginning."""
    rows, target = 600, torch.randn(600, 6, 4, dtype=torch.float64)
    heard = {}

    def step(x, times, state, lengths, whole):
        noisy, t = x[..., :4], times[:, None, None].double()
        noise = (noisy - t * target) / (1 - (1 - SIGMA) * t)
        heard.update(told=x[..., 4:], times=times)
        return target - (1 - SIGMA) * noise, state

    monkeypatch.setattr(model.flow.estimator, "step", step)
    monkeypatch.setattr(model.flow.estimator, "initial_state", lambda *args: None)
    torch.manual_seed(0)
    rough, voice = torch.ones_like(target), torch.full((rows, 4), 2.0, dtype=torch.float64)
    lengths, prompted = torch.full((rows,), 6), torch.arange(rows) % 3
    loss = model.flow.loss(rough, target, lengths, voice, prompted)
    assert float(loss) < 1e-12
    told = heard["told"].abs().sum((1, 2)) > 0
    assert 0.74 < float(told.double().mean()) < 0.86
    rough, voice, given = heard["told"][told].split(4, dim=-1)
    assert (rough == 1).all() and (voice == 2).all()
    counts = (given.abs().sum(-1) > 0).sum(1)
    assert torch.equal(counts, prompted[told]) and torch.equal(given[:, 0][counts > 0], target[told][:, 0][counts > 0])
    assert 0.35 < float((heard["times"] < 0.2928932).double().mean()) < 0.65  # half of them: as the solver's steps lie


def test_it_learns_what_tokens_sound_like():
    torch.manual_seed(0)
    model = TokenToMel(FlowConfig(**TINY))
    sounds, losses = 2 * torch.randn(8, 4), []
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(15):
        tokens = torch.randint(8, (32, 4))
        target = sounds[tokens].repeat_interleave(2, dim=1)
        counts, zero = torch.full((32,), 4), torch.zeros(32, dtype=torch.int64)
        loss = model.loss(tokens, target, counts, torch.zeros(32, 5), zero, whole=step % 2 == 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4]), losses


def test_what_cannot_be_is_refused():
    for wrong in ({"steps": 0}, {"guidance": -1.0}, {"drop": 1.0}, {"chunk": 2.5}):
        with pytest.raises(RecipeError, match=next(iter(wrong))):
            FlowConfig(**wrong)
