"""What a language model makes of texts: vectors of their pieces in context, for codecs to learn from."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vivavoce.errors import RecipeError, need
from vivavoce.hub import local_place
from vivavoce.pretrained import FILES

TOKENIZER = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.*", "merges.txt", "*.model"]
LETTERS = 256  # of the stand-in, which reads bytes


class TextTeacher:
    """A frozen language model of transformers; of an encoder and a decoder (T5) the encoder.

    source, revision: its directory or hub id. layer: one of its layers (0: before the first), None for the last,
    "all" for the mean of all. Without a source it is a small random BERT that reads bytes, of these sizes: a stand-in.
    Raises `RequestError` where there is none, `MissingExtra` without transformers.
    """

    def __init__(
        self,
        source: str | None = None,
        revision: str | None = None,
        layer: int | str | None = None,
        width: int = 32,
        layers: int = 2,
        heads: int = 2,
    ):
        package = need("transformers", "hub", "learning from a language model")
        self.tokenizer: Any = None
        if source is None:
            sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
            config = package.BertConfig(vocab_size=LETTERS, intermediate_size=2 * width, **sizes)
            self.model = package.BertModel(config, add_pooling_layer=False)
        else:
            place = local_place(source, "language model", [*FILES, *TOKENIZER], revision)
            self.tokenizer = package.AutoTokenizer.from_pretrained(place)
            found = package.AutoModel.from_pretrained(place)
            self.model = found.get_encoder() if found.config.is_encoder_decoder else found
        self.model.requires_grad_(False).eval()
        self.width, depth = self.model.config.hidden_size, self.model.config.num_hidden_layers
        if layer not in (None, "all") and not (isinstance(layer, int) and 0 <= layer <= depth):
            raise RecipeError(f"language model: layer {layer!r}: it has 0 to {depth}, or all")
        self.layer = layer

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], device: torch.device | None = None) -> list[Tensor]:
        """The vectors [N, width] of each text's pieces, on a device (None: where the model is); special ones that stand
        around a text are left out."""
        device = device or self.model.device
        self.model.to(device)
        found = []
        for text in texts:
            ids, kept = self._pieces(text)
            if not ids:
                found.append(torch.zeros(0, self.width, device=device))
                continue
            said = self.model(input_ids=torch.tensor([ids], device=device), output_hidden_states=True)
            layers = said.hidden_states
            one = -1 if self.layer is None else self.layer
            values = torch.stack(layers).mean(0) if isinstance(one, str) else layers[one]
            found.append(values[0][torch.tensor(kept, dtype=torch.bool, device=device)].float())
        return found

    def _pieces(self, text: str) -> tuple[list[int], list[bool]]:
        """Ids of a text, and which of them are its own."""
        if self.tokenizer is None:
            ids = list(text.encode())
            return ids, [True] * len(ids)
        longest = min(int(self.tokenizer.model_max_length), 1 << 20)
        found = self.tokenizer(text, truncation=True, max_length=longest, return_special_tokens_mask=True)
        return list(found["input_ids"]), [not special for special in found["special_tokens_mask"]]


def spread(vectors: Tensor, at: Tensor) -> Tensor:
    """Vectors [N, D] as if each were said for the same time: those at shares `at` [T] of the whole, [T, D]."""
    return vectors[(at * len(vectors)).long().clamp(0, len(vectors) - 1)]
