"""Text models by path: their log-probabilities are transformers', and what is no text model is refused."""

import json
import shutil

import pytest
import torch

from published_models import ctc_recogniser, text_lm
from vivavoce.errors import CheckpointError, RequestError
from vivavoce.evaluation.text_lm import TextLM

pytest.importorskip("transformers")
TEXTS = ["the cat sat", "a", "", "it was the best of times, it was the worst of times"]


def nats_of(model, ids):
    """Of all ids behind the first, and how many."""
    if len(ids) < 2:
        return 0.0, 0
    with torch.inference_mode():
        found = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return -sum(float(found[at, id]) for at, id in enumerate(ids[1:])), len(ids) - 1


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_costs_are_those_of_transformers_in_any_batch(kind, tmp_path):
    model, tokenizer = text_lm(tmp_path, kind, begins=kind != "gpt2")
    ours = TextLM(tmp_path)
    for ends in (False, True):
        together = ours.nats(TEXTS, ends)
        assert together == [pytest.approx(ours.nats([text], ends)[0], abs=1e-4) for text in TEXTS]
        for text, (total, count) in zip(TEXTS, together):
            inner = tokenizer(text, add_special_tokens=False)["input_ids"]
            begin = 1 if kind == "gpt2" else 0
            ids = [begin, *inner, 1] if ends and inner else tokenizer(text)["input_ids"] if not ends else []
            wanted, tokens = nats_of(model, ids)
            assert count == tokens and total == pytest.approx(wanted, abs=1e-3)
    assert together[0][1] == len(TEXTS[0]) + 1 and together[2] == (0.0, 0)
    # without a begin token the first letter is free
    assert ours.nats(["cat"])[0][1] == (2 if kind == "gpt2" else 3)


def test_a_text_that_is_too_long_is_named(tmp_path):
    text_lm(tmp_path)
    with pytest.raises(RequestError, match="reads 256 tokens, a text has 301"):
        TextLM(tmp_path).nats(["short", "x" * 300])


def test_what_is_no_text_model_is_refused(tmp_path):
    with pytest.raises(RequestError, match="nothing-here"):
        TextLM("nothing-here")
    ctc = tmp_path / "ctc"
    ctc.mkdir()
    ctc_recogniser(ctc)
    with pytest.raises(CheckpointError, match="no language model"):
        TextLM(ctc)
    folder = tmp_path / "lm"
    folder.mkdir()
    text_lm(folder)
    bare = shutil.copytree(folder, tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="bare"):
        TextLM(bare)
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight"):
        TextLM(folder)
    config = json.loads((bare / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps({**config, "model_type": "unheard-of"}))
    with pytest.raises(CheckpointError, match="bare"):
        TextLM(bare)
