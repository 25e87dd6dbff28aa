"""Arguments that come from outside (an option, a row of a file) checked against the signature that they go to."""

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, get_type_hints

from pydantic import ConfigDict, Field, ValidationError, create_model

from vivavoce.errors import RequestError, VivavoceError
from vivavoce.schema.reading import explain

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


@cache
def arguments_of(
    call: Callable[..., Any], skip: int = 0, error: type[VivavoceError] = RequestError, **more: Any
) -> "Arguments":
    """`Arguments`, made once for each call."""
    return Arguments(call, skip, error, **more)


class Arguments:
    """The keyword arguments that `call` takes behind its first `skip`, and `more` (name -> type).

    Types are the signature's annotations as pydantic reads them, with bounds where they are `Annotated`; numbers are
    finite. What is wrong raises `error`.
    """

    def __init__(
        self, call: Callable[..., Any], skip: int = 0, error: type[VivavoceError] = RequestError, **more: Any
    ) -> None:
        hints = get_type_hints(call.__init__ if inspect.isclass(call) else call, include_extras=True)
        parameters = list(inspect.signature(call).parameters.values())
        named = [p for p in parameters[skip:] if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        fields = {p.name: (hints[p.name], ... if p.default is p.empty else p.default) for p in named}
        fields |= {name: (kind, None) for name, kind in more.items()}
        # A call that passes the rest on checks it where that goes.
        extra = "allow" if any(p.kind == p.VAR_KEYWORD for p in parameters) else "forbid"
        config = ConfigDict(extra=extra, allow_inf_nan=False, protected_namespaces=())  # type: ignore[typeddict-item]
        self.names, self.error = tuple(fields), error
        self._model: Any = create_model("Arguments", __config__=config, **fields)  # type: ignore[call-overload]

    def check(self, given: Mapping[str, Any], where: str) -> dict[str, Any]:
        """`given`, each value as the type that is declared; the error names `where`, the argument and what is wrong."""
        if not isinstance(given, Mapping):
            raise self.error(f"{where}: {given!r:.60} found, a mapping with {', '.join(self.names)} is expected")
        if strange := [name for name in given if not isinstance(name, str)]:
            raise self.error(f"{where}: {strange[0]!r:.60} is no name of a setting")
        try:
            found = self._model.model_validate(dict(given))
        except ValidationError as error:
            hint = "; there are " + ", ".join(self.names) if error.errors()[0]["type"] == "extra_forbidden" else ""
            raise self.error(explain(error, given, where)[0] + hint) from error
        return {name: getattr(found, name) for name in given}
