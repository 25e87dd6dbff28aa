"""What a model can do, as plain data: for clients that want to know before they ask."""

from importlib.util import find_spec
from typing import Any

from vivavoce.serving.rest.formats import formats
from vivavoce.serving.rest.replies import hears_itself, tasks_of


def capabilities(model: Any, name: str, frame_size: int) -> dict[str, Any]:
    """Verbs, tasks, rates, streams and formats of a `model` that is served as `name`.

    `duplex`: "full" where it listens while it speaks, "half" where it takes turns. `tasks`: task of `reply` -> what it
    is given. `languages`: None where the recipe does not say. `history`: "own" where earlier answers in a chat must be
    the model's own.
    """
    recipe, tasks = getattr(model, "recipe", None), tasks_of(model)
    return {
        "id": name,
        "object": "model.capabilities",
        "system": getattr(recipe, "system", name),
        "description": getattr(recipe, "description", ""),
        "parameters": int(getattr(model, "parameters", 0)),
        "device": str(getattr(model, "device", "")),
        "verbs": dict(model.verbs),
        "tasks": {task: list(kinds) for task, kinds in tasks.items()},
        "duplex": "half" if hears_itself(model) else "full",
        "sample_rate": model.sample_rate,
        "frame_size": frame_size,
        "frame_seconds": frame_size / model.sample_rate,
        "streams": streams_of(model),
        "languages": languages_of(model),
        "voices": ["default"],
        "history": "own",
        "endpoints": {
            "/v1/audio/speech": "text" in tasks.get("speak", ()),
            "/v1/audio/transcriptions": "audio" in tasks.get("transcribe", ()),
            "/v1/audio/translations": "audio" in tasks.get("translate", ()),
            "/v1/chat/completions": "answer" in tasks,
            "/v1/realtime/calls": find_spec("aiortc") is not None,
        },
        "speech_formats": formats(),
    }


def streams_of(model: Any) -> dict[str, dict[str, Any]]:
    """Stream -> its modality, its levels and vocabulary, or its width, and its part in the conversation."""
    interaction = getattr(getattr(model, "recipe", None), "interaction", None)
    parts = {getattr(interaction, part, None): part for part in ("hears", "speaks", "writes", "transcribes")}
    found = {}
    for name, stream in getattr(getattr(model, "system", None), "streams", {}).items():
        size = {"width": stream.width} if stream.width is not None else {
            "levels": stream.spec.levels, "vocabulary": stream.size,
        }  # fmt: skip
        found[name] = {"modality": stream.modality or "frames", "part": parts.get(name), **size}
    return found


def languages_of(model: Any) -> list[str] | None:
    """The languages that the model says it knows, as ISO 639-1 codes, or None."""
    known = getattr(model, "languages", None) or getattr(getattr(model, "recipe", None), "languages", None)
    return [str(each) for each in known] if known else None


def greedy(model: Any) -> bool:
    """Whether the model is known to choose without chance, as a temperature of 0 asks for."""
    sampling = getattr(getattr(model, "system", None), "sampling", None)
    if sampling is None:
        return getattr(model, "parameters", None) == 0  # without weights there is nothing to choose by
    return all(each.temperature == 0 for each in sampling.values())
