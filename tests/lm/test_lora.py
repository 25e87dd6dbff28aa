"""Low-rank adapters: the formula, switching off, merging, saving apart."""

import copy

import pytest
import torch

import vivavoce
from vivavoce.errors import CheckpointError, RecipeError
from vivavoce.lm.lora import (
    LoraSettings,
    adapted,
    adapters_off,
    add_lora,
    load_lora,
    load_network,
    lora_tensors,
    merge_lora,
    remove_lora,
    without_lora,
)

TARGETS = ("backbone.*qkv", "depth.*(out|entry)")
OPTIONS = {"targets": list(TARGETS), "rank": 3, "alpha": 6.0}


def network():
    """A stage with a decoder and a depth transformer, and what it says of something."""
    torch.manual_seed(0)
    stage = vivavoce.build("layout-parallel", "smoke").system.stage.eval()
    places = stage.layout.place({"voice": torch.tensor([6, 4])})
    values = {"voice": torch.randint(0, 9, (2, stage.layout.streams[0].levels, 6))}
    return stage, lambda: torch.cat([logits.flatten() for logits in stage(places, values)["voice"].logits])


def learned(stage, scale: float = 0.3) -> None:
    """Adapters that have been trained."""
    torch.manual_seed(1)
    for module in adapted(stage).values():
        module.lora_b.data.normal_(std=scale)


def test_it_begins_as_the_network_that_it_adapts_and_only_factors_train():
    stage, said = network()
    before = said()
    names = add_lora(stage, OPTIONS)
    assert torch.equal(said(), before)
    assert any(name.startswith("backbone") for name in names) and any(name.startswith("depth") for name in names)
    trains = {name for name, p in stage.named_parameters() if p.requires_grad}
    assert trains == {f"{name}.{part}" for name in names for part in ("lora_a", "lora_b")}
    said().square().sum().backward()
    assert all(stage.get_submodule(name).lora_b.grad.abs().max() > 0 for name in names)


def test_it_is_the_papers_formula_and_merging_changes_nothing():
    stage, said = network()
    plain = {name: tensor.clone() for name, tensor in stage.state_dict().items()}
    names = add_lora(stage, OPTIONS)
    learned(stage)
    change = said()
    for name in names:
        module = stage.get_submodule(name)
        assert module.lora_a.shape[-2] == 3 and torch.allclose(module.lora_scale, torch.tensor(2.0))
        x = torch.randn(*module.lora_a.shape[:-2], 5, module.lora_a.shape[-1])
        expected = plain[f"{name}.weight"] + 6.0 / 3 * module.lora_b @ module.lora_a
        if expected.dim() == 2:
            torch.testing.assert_close(module(x), x @ expected.T, atol=1e-5, rtol=1e-4)
        else:
            for step, number in enumerate(module.schedule):
                torch.testing.assert_close(module.at(step, x[0]), x[0] @ expected[number].T, atol=1e-5, rtol=1e-4)
    tensors = without_lora(stage.state_dict())
    merge_lora(stage)
    assert not adapted(stage) and set(stage.state_dict()) == set(plain) == set(tensors)
    torch.testing.assert_close(said(), change, atol=1e-4, rtol=1e-4)
    assert all(torch.allclose(tensor, tensors[name], atol=1e-6) for name, tensor in stage.state_dict().items())
    assert all(p.requires_grad for p in stage.parameters())


def test_switched_off_it_is_the_network_as_it_was_dropout_included():
    stage, said = network()
    before = said()
    add_lora(stage, {**OPTIONS, "dropout": 0.5})
    learned(stage)
    stage.train()
    noisy = said()
    with adapters_off(stage):
        assert torch.equal(said(), before) and not stage.training
    assert stage.training and not torch.equal(said(), noisy), "dropout draws anew"
    stage.eval()
    assert torch.equal(said(), said()) and not torch.allclose(said(), before)
    remove_lora(stage)
    assert torch.equal(said(), before)


def test_adapters_are_saved_apart_and_loaded_into_another_copy():
    stage, _ = network()
    other = copy.deepcopy(stage)
    add_lora(stage, OPTIONS)
    learned(stage)
    tensors = lora_tensors(stage)
    assert sum(t.numel() for t in tensors.values()) < 0.5 * sum(p.numel() for p in other.parameters())
    load_lora(other, tensors)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in stage.state_dict().items())
    fresh, _ = network()
    load_network(fresh, stage.state_dict(), "t")
    merge_lora(other)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in fresh.state_dict().items())
    with pytest.raises(CheckpointError, match="no such matrix"):
        load_lora(network()[0], {f"nowhere.{key}": value for key, value in tensors.items()})
    narrow = {key: value[..., :-1] if key.endswith("lora_a") else value for key, value in tensors.items()}
    with pytest.raises(CheckpointError, match="are of a matrix"):
        load_lora(network()[0], narrow)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ["backbone.*qvk"]}, "lora.targets: 'backbone.*qvk' matches no matrix; they are called"),
        ({"targets": ["("]}, "is not a regular expression"),
        ({"targets": []}, "give targets"),
        ({"targets": ["backbone"], "rank": 0}, "rank"),
        ({"targets": ["backbone"], "ranks": 2}, "lora.*ranks"),
        ({"rank": 2}, "targets"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        add_lora(network()[0], LoraSettings.of(options))


def test_a_network_is_adapted_once():
    stage, _ = network()
    stage.begin.requires_grad_(False)
    add_lora(stage, OPTIONS)
    with pytest.raises(RecipeError, match="has adapters already"):
        add_lora(stage, OPTIONS)
    remove_lora(stage)
    frozen = [name for name, p in stage.named_parameters() if not p.requires_grad]
    assert frozen == ["begin"], "what its maker had frozen stays frozen"
