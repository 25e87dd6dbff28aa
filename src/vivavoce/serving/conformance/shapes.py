"""What a JSON value must look like, as plain data; and what is wrong with one that does not.

A shape is a type (`str`, `int`, `float` for any number, `bool`, `dict`, `list`); a tuple of the values or shapes of
which it may be one, None among them; a list with the shape of each element; or a dictionary name -> shape of what an
object must hold. A name that begins with "?" may be missing or null. What is there beyond a shape is nobody's concern:
servers add fields of their own.
"""

from typing import Any

from vivavoce.serving.conformance.rules import shown

NAMES = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", dict: "an object"}
NAMES |= {list: "a list"}


def faults(value: Any, shape: Any, where: str = "") -> list[str]:
    """What is wrong with a value, each in a few words that begin with the place; nothing where it is as it should."""
    if isinstance(shape, type):
        return [] if _is(value, shape) else [f"{where or 'it'}: {shown(value, 40)}, {NAMES[shape]} is expected"]
    if isinstance(shape, tuple):
        if any(_fits(value, one) for one in shape):
            return []
        inside = next((one for one in shape if isinstance(one, dict) and isinstance(value, dict)), None)
        return faults(value, inside, where) if inside else [f"{where or 'it'}: {shown(value, 40)}, {said(shape)}"]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return [f"{where or 'it'}: {shown(value, 40)}, a list is expected"]
        return [fault for at, one in enumerate(value) for fault in faults(one, shape[0], f"{where}[{at}]")]
    if isinstance(shape, dict):
        return _object(value, shape, where)
    return [] if value == shape and type(value) is type(shape) else [f"{where}: {shown(value, 40)}, {said((shape,))}"]


def said(shape: tuple[Any, ...]) -> str:
    """What one of several shapes asks for."""
    names = [NAMES[one] if isinstance(one, type) else "an object" if isinstance(one, dict) else
             "a list" if isinstance(one, list) else "null" if one is None else f"'{one}'" for one in shape]  # fmt: skip
    return " or ".join(names) + (" are" if len(names) > 1 else " is") + " expected"


def _object(value: Any, shape: dict[str, Any], where: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{where or 'it'}: {shown(value, 40)}, an object is expected"]
    found = []
    for name, inside in shape.items():
        plain = name.removeprefix("?")
        path = f"{where}.{plain}" if where else plain
        if plain not in value:
            found += [] if plain != name else [f"{path} is missing"]
        elif value[plain] is not None or plain == name:
            found += faults(value[plain], inside, path)
    return found


def _fits(value: Any, shape: Any) -> bool:
    if isinstance(shape, type | dict | list | tuple):
        return not faults(value, shape)
    return value == shape and type(value) is type(shape)


def _is(value: Any, kind: type) -> bool:
    if kind in (int, float):
        whole = isinstance(value, int) or (isinstance(value, float) and (kind is float or value == value // 1))
        return whole and not isinstance(value, bool)
    return isinstance(value, kind)
