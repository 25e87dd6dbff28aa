"""The decoder: a causal transformer over embedded columns [B, T, D], with a last norm and a cursor for every row."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vivavoce.errors import RecipeError
from vivavoce.nn.norms import make_norm
from vivavoce.nn.streaming import State, Streaming
from vivavoce.nn.transformer import Transformer, TransformerConfig

FREE = ("rope_theta", "dropout", "context")  # options that change no weight


class Decoder(Streaming):
    """`Transformer` plus norm. The state is the transformer's; `state["position"]` [B] is each row's cursor.

    It knows no vocabulary: columns are embedded by `embeddings`, predicted by `heads`.
    """

    engine: Any = None  # what computes single steps in torch's place (see `vivavoce.lm.engine`)

    def __init__(self, config: TransformerConfig, final_norm: bool = True):
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.norm = make_norm(config.norm, config.width, config.norm_eps) if final_norm else nn.Identity()

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Decoder":
        """From a recipe's options: fields of `TransformerConfig` and `final_norm`, or `from`.

        from: directory or hub id of a published text LM in transformers' form, whose layers are taken; beside it stands
        only what has no weights (`FREE`). `RecipeError` names what is wrong with an option.
        """
        options = dict(options)
        source = options.pop("from", None)
        if source is not None:
            if fixed := [name for name in options if name not in FREE]:
                raise RecipeError(f"backbone: '{fixed[0]}' comes from the model at `from`: leave it out")
            from vivavoce.hub import local_place
            from vivavoce.lm.pretrained import load_text_lm
            from vivavoce.pretrained import FILES

            decoder = load_text_lm(local_place(source, "text LM", FILES)).decoder
            return decoder.changed(options) if options else decoder
        final_norm = bool(options.pop("final_norm", True))
        return cls(TransformerConfig.of(options, "backbone"), final_norm)

    def changed(self, options: Mapping[str, Any]) -> "Decoder":
        """The same weights in another configuration: options are of those that have none."""
        known = {field.name: getattr(self.config, field.name) for field in dataclasses.fields(self.config)}
        if "rope_theta" in options and (scaling := known["rope_scaling"]):  # it says the base as well
            known["rope_scaling"] = {name: value for name, value in scaling.items() if name != "rope_theta"}
        final_norm = not isinstance(self.norm, nn.Identity)
        with torch.device("meta"):
            other = type(self)(TransformerConfig.of({**known, **options}, "backbone"), final_norm)
        other.load_state_dict(self.state_dict(), assign=True)
        return other

    @property
    def width(self):
        return self.config.width

    @property
    def lookahead(self):  # type: ignore[override]
        return self.transformer.lookahead

    @property
    def receptive_field(self):  # type: ignore[override]
        return self.transformer.receptive_field

    def forward(self, x: Tensor, lengths: Tensor | None = None, **context: Any) -> Tensor:
        """Whole rows of columns [B, T, D] -> hidden [B, T, D]; `context`: as `Transformer.forward` takes it."""
        return self.norm(self.transformer(x, lengths, **context))

    def initial_state(self, batch, device=None, dtype=None):
        return self.transformer.initial_state(batch, device, dtype)

    def step(self, x: Tensor, state: State, lengths: Tensor | None = None, **context: Any) -> tuple[Tensor, State]:
        """The next columns [B, T, D] -> hidden [B, T, D] and state; `context`: as `Transformer.step` takes it."""
        if self.engine is not None and self.engine.takes(x, state, context):
            return self.engine.step(x, state, lengths, **context)
        y, after = self.transformer.step(x, state, lengths, **context)
        return self.norm(y), after

    def flush(self, state, rows=None):
        y, after = self.transformer.flush(state, rows)
        return self.norm(y), after
