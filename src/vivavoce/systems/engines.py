"""What computes the single steps of a model's language model: torch, or OpenVINO, which reads its weights faster."""

from typing import Any

from vivavoce.errors import RequestError

ENGINES = ("torch", "openvino")
WEIGHTS = ("float32", "int8", "int8-dynamic")


def check_engine(engine: str, weights: str) -> None:
    """Raise `RequestError` for an engine or weights that there are not, `MissingExtra` for what is not installed."""
    for name, value, known in (("engine", engine, ENGINES), ("weights", weights, WEIGHTS)):
        if value not in known:
            raise RequestError(f"{name} '{value}': there are {', '.join(known)}")
    if engine == "openvino":
        from vivavoce.lm.engine import runtime

        runtime()
    elif weights != "float32":
        raise RequestError(f"weights '{weights}' are for engine='openvino'; torch takes float32 ones (or dtype=)")


def use_engine(model: Any, engine: str, weights: str = "float32") -> None:
    """Let `engine` compute the steps of all language models that `model` (see `vivavoce.systems.Model`) has.

    What is not a step of a language model (whole signals, encoders, codecs) torch goes on computing, with the same
    rounded weights where they are int8. Raises `RequestError` where the model has none, or its weights are not float32
    on the CPU.
    """
    check_engine(engine, weights)
    if engine == "torch":
        return
    from vivavoce.lm.engine import use_openvino

    system = getattr(model, "system", None)
    parts = list(getattr(system, "stages", {}).values()) or [system]
    stages = [part.stage for part in parts if hasattr(part, "stage")]
    if not stages:
        raise RequestError(f"{model.name} has no language model: leave out engine='{engine}'")
    for stage in stages:
        use_openvino(stage, weights)
