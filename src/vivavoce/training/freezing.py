"""Which parameters train: patterns of names, which complain when they match nothing.

The idea of counting matches is NeMo's (speechlm2/parts/optim_setup.py)."""

import difflib
import re
from collections.abc import Mapping, Sequence

from torch import nn

from vivavoce.errors import RecipeError


def named_parameters(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """All parameters by "module.parameter", each once (a shared one under its first name)."""
    seen: set[int] = set()
    named = {}
    for module_name, module in modules.items():
        for name, parameter in module.named_parameters():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                named[f"{module_name}.{name}"] = parameter
    return named


def freeze(
    modules: Mapping[str, nn.Module], trainable: Sequence[str] = (), frozen: Sequence[str] = ()
) -> dict[str, nn.Parameter]:
    """Set `requires_grad` as `chosen` says, and return the parameters that train, by full name."""
    trained = chosen(modules, trainable, frozen)
    for name, parameter in named_parameters(modules).items():
        parameter.requires_grad_(name in trained)
    return trained


def chosen(
    modules: Mapping[str, nn.Module], trainable: Sequence[str] = (), frozen: Sequence[str] = ()
) -> dict[str, nn.Parameter]:
    """The parameters that train, by full name; nothing is changed.

    A pattern is a regular expression that the beginning of "module.parameter" must match: "lm\\.layers\\.[01]\\.".
    Without `trainable` all parameters train that are not `frozen`; `frozen` wins over `trainable`. Parameters that
    the model's maker has frozen (`requires_grad` False) stay so unless `trainable` names them. `RecipeError` where a
    pattern matches nothing, or nothing is left to train.
    """
    named = named_parameters(modules)
    names = _matched("trainable", trainable, named) if trainable else {n for n, p in named.items() if p.requires_grad}
    names -= _matched("frozen", frozen, named)
    if not names:
        raise RecipeError("nothing is left to train: every parameter is frozen")
    return {name: parameter for name, parameter in named.items() if name in names}


def train_mode(modules: Mapping[str, nn.Module]) -> None:
    """Training mode, except for parts whose parameters are all frozen: their dropout and codebooks must not move."""
    for module in modules.values():
        module.train()
        for part in module.modules():
            parameters = list(part.parameters())
            if parameters and not any(p.requires_grad for p in parameters):
                part.eval()


def _matched(field: str, patterns: Sequence[str], named: Mapping[str, nn.Parameter]) -> set[str]:
    matched: set[str] = set()
    for pattern in patterns:
        try:
            hits = {name for name in named if re.match(pattern, name)}
        except re.error as error:
            raise RecipeError(f"{field}: '{pattern}' is not a regular expression: {error}") from error
        if not hits:
            near = difflib.get_close_matches(pattern, named, n=3, cutoff=0.3) or list(named)[:3]
            raise RecipeError(f"{field}: pattern '{pattern}' matches no parameter; names look like {', '.join(near)}")
        matched |= hits
    return matched
