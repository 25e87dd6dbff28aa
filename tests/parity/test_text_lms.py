"""Published text LMs in our decoder against transformers, on random weights that are far from their starting values."""

import json
import shutil

import pytest
import torch
import transformers

from vivavoce.errors import CheckpointError, RecipeError, RequestError
from vivavoce.lm.decoder import Decoder
from vivavoce.lm.pretrained import load_text_lm, save_text_lm

COMMON = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
GATED = {**COMMON, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 128}
SCALED = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
OPT = {**COMMON, "ffn_dim": 64, "max_position_embeddings": 64, "pad_token_id": 1}
MODELS = {
    "llama": lambda t: t.LlamaForCausalLM(t.LlamaConfig(**GATED, tie_word_embeddings=False)),
    "llama, long context, biases": lambda t: t.LlamaForCausalLM(
        t.LlamaConfig(**GATED, rope_parameters=SCALED, attention_bias=True, head_dim=16, tie_word_embeddings=True)
    ),
    "mistral": lambda t: t.MistralForCausalLM(t.MistralConfig(**GATED, sliding_window=7)),
    "qwen2": lambda t: t.Qwen2ForCausalLM(t.Qwen2Config(**GATED, tie_word_embeddings=True)),
    "qwen3": lambda t: t.Qwen3ForCausalLM(t.Qwen3Config(**GATED, head_dim=16)),
    "opt": lambda t: t.OPTForCausalLM(t.OPTConfig(**OPT, word_embed_proj_dim=32)),
    "opt, norms behind, narrow table": lambda t: t.OPTForCausalLM(
        t.OPTConfig(**OPT, word_embed_proj_dim=16, do_layer_norm_before=False)
    ),
    "gpt2": lambda t: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=97, n_embd=32, n_layer=3, n_head=4, n_positions=64)),
}


def theirs(name: str):
    """A model of transformers with weights that make every part count."""
    torch.manual_seed(1)
    model = MODELS[name](transformers).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            else:
                parameter.normal_(std=0.25)
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    made = {}

    def get(name: str):
        if name not in made:
            model, folder = theirs(name), tmp_path_factory.mktemp("lm")
            model.save_pretrained(folder)
            made[name] = (model, folder)
        return made[name]

    return get


def same(ours: torch.Tensor, reference: torch.Tensor) -> None:
    error = float((ours - reference).abs().max() / reference.abs().max())
    assert error < 1e-5, error


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_whole_padded_and_streamed(saved, name):
    reference, folder = saved(name)
    model = load_text_lm(folder)
    ids = torch.randint(0, 97, (3, 20))
    lengths = torch.tensor([20, 11, 1])
    with torch.no_grad():
        expected = reference(ids).logits
        assert float(expected.std()) > 0.1
        same(model(ids), expected)
        padded = model(ids, lengths)
        state, pieces = model.initial_state(3), []
        for start, end in ((0, 6), (6, 7), (7, 8), (8, 20)):
            logits, state = model.step(ids[:, start:end], state)
            pieces.append(logits)
        same(torch.cat(pieces, 1), expected)
        for row, n in enumerate(lengths):
            same(padded[row, :n], expected[row, :n])


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_loads_into_transformers_with_equal_logits(saved, tmp_path, name):
    _, folder = saved(name)
    model = load_text_lm(folder)
    model.extend_vocabulary(14)
    save_text_lm(model, tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.randint(0, 111, (2, 9))
    with torch.no_grad():
        logits = model(ids)
        assert logits.shape[-1] == 111
        same(again(ids).logits, logits)
        same(load_text_lm(tmp_path)(ids), logits)


def test_the_vocabulary_is_extended_or_replaced(saved):
    for name in ("llama", "qwen2"):
        reference, folder = saved(name)
        model, ids = load_text_lm(folder), torch.randint(0, 97, (1, 8))
        with torch.no_grad():
            before = reference(ids).logits
            model.extend_vocabulary(5)
            after = model(ids)
            same(after[..., :97], before)
            # A row at the mean of the table gives the mean of the logits.
            assert float((after[..., 97:] - before.mean(-1, keepdim=True)).abs().max() / before.abs().max()) < 0.02
            model.replace_vocabulary(30)
            assert model(ids % 30).shape == (1, 8, 30)
        spread = float(model.table.weight.std().detach() / reference.get_input_embeddings().weight.std().detach())
        assert 0.9 < spread < 1.1
    with pytest.raises(RequestError, match="impossible"):
        model.replace_vocabulary(10, keep=31)


def test_a_backbone_of_a_recipe_takes_a_published_models_layers(saved):
    reference, folder = saved("qwen2")
    decoder, x = Decoder.of({"from": str(folder)}), torch.randn(2, 7, 32)
    with torch.no_grad():
        same(decoder(x), reference.model(inputs_embeds=x).last_hidden_state)
    decoder(x).sum().backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters())
    with pytest.raises(RecipeError, match="'layers' comes from the model"):
        Decoder.of({"from": str(folder), "layers": 2})


def test_shards_and_names_without_prefix_load(saved, tmp_path):
    reference, _ = saved("gpt2")
    ids = torch.randint(0, 97, (1, 8))
    reference.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    reference.transformer.save_pretrained(tmp_path / "bare")
    with torch.no_grad():
        for name in ("shards", "bare"):
            same(load_text_lm(tmp_path / name)(ids), reference(ids).logits)
    next((tmp_path / "shards").glob("*-00001-*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match=r"shard .* is missing"):
        load_text_lm(tmp_path / "shards")


def test_what_does_not_fit_is_refused_with_its_place(saved, tmp_path):
    _, folder = saved("llama")
    with pytest.raises(RequestError, match="no such directory"):
        load_text_lm(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        load_text_lm(tmp_path)
    changes = {"hidden_size": 64, "model_type": "mamba", "hidden_act": "mish", "num_hidden_layers": 4}
    for key, value in changes.items():
        bad = tmp_path / key
        shutil.copytree(folder, bad)
        config = json.loads((bad / "config.json").read_text())
        (bad / "config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(CheckpointError, match=r"config\.json|is missing"):
            load_text_lm(bad)
    shutil.copytree(folder, tmp_path / "odd")
    odd, whole = tmp_path / "odd" / "config.json", (folder / "config.json").read_text()
    for key, value in [
        ("hidden_size", "x"), ("vocab_size", "x"), ("vocab_size", -3), ("num_attention_heads", 0),
        ("num_hidden_layers", -1), ("rope_parameters", 3), ("rope_parameters", {"rope_type": "llama3"}),
    ]:  # fmt: skip
        odd.write_text(json.dumps({**json.loads(whole), key: value}))
        with pytest.raises(CheckpointError, match=r"config\.json"):
            load_text_lm(odd.parent)
    (bad / "model.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="cut short"):
        load_text_lm(bad)
    (bad / "model.safetensors").rename(bad / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickle"):
        load_text_lm(bad)


def test_a_prefix_of_keys_and_values_equals_a_cache_given_to_transformers(saved):
    """The input that enters as a prefix: Llama with keys and values that no text has made (prefix tuning)."""
    reference, folder = saved("llama")
    model, ids = load_text_lm(folder), torch.randint(0, 97, (2, 9))
    prefix = [(torch.randn(2, 4, 2, 8), torch.randn(2, 4, 2, 8)) for _ in range(3)]
    cache = transformers.DynamicCache()
    for layer, (keys, values) in enumerate(prefix):
        cache.update(keys.transpose(1, 2), values.transpose(1, 2), layer)
    with torch.no_grad():
        expected = reference(ids, past_key_values=cache).logits
        same(model(ids, prefix=prefix), expected)
        logits, state = model.step(ids[:, :5], model.initial_state(2, prefix=prefix))
        more, _ = model.step(ids[:, 5:], state)
        same(torch.cat([logits, more], 1), expected)
        assert not torch.allclose(model(ids), expected, atol=1e-2)
