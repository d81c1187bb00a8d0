"""What makes a typed row of what stands in a file: msgspec's types, and pydantic's models."""

from __future__ import annotations

import types
import typing
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import inspect

if TYPE_CHECKING:
    from collections.abc import Callable

#: What a row of CSV, a mapping from names to strings, can become.
_OF_A_MAPPING = (
    inspect.StructType,
    inspect.DataclassType,
    inspect.TypedDictType,
    inspect.DictType,
    inspect.AnyType,
)


def is_model(type_: Any) -> bool:
    """Tell whether this is a pydantic model, or validates as one does."""
    return callable(getattr(type_, "model_validate", None))


def json_decoder(type_: Any) -> Callable[[Any], Any]:
    """Return what makes a row of a JSON text.

    Raises:
        TypeError: If no row can be of this type.
    """
    if type_ is None:
        return msgspec.json.Decoder().decode
    if is_model(type_):
        validate: Any = getattr(type_, "model_validate_json", None)
        return validate or (lambda text: type_.model_validate(msgspec.json.decode(text)))
    _checked(type_)
    return msgspec.json.Decoder(type_, dec_hook=_validate).decode


def csv_decoder(type_: Any) -> Callable[[dict[str, Any]], Any]:
    """Return what makes a row of a mapping from names to strings.

    An empty cell is None where the field may be None, the empty string where it may be a string,
    and else as if the column were not there, so that the field's default holds.

    Raises:
        TypeError: If no row can be of this type.
    """
    if type_ is None:
        return lambda row: row
    if is_model(type_):
        validate, drops = type_.model_validate, _empty_in_model(type_)
    else:
        info = _checked(type_)
        kinds = info.types if isinstance(info, inspect.UnionType) else (info,)
        if not any(map(_takes_a_mapping, kinds)):
            raise TypeError(f"type must be what a row with named cells can become, got {type_!r}")
        drops = {field.encode_name: _on_empty(field.type) for field in getattr(info, "fields", ())}

        def validate(row: dict[str, Any]) -> Any:
            return msgspec.convert(row, type_, strict=False, dec_hook=_validate)

    def decode(row: dict[str, Any]) -> Any:
        if "" in row.values():
            row = {
                name: cell or drops.get(name, "")
                for name, cell in row.items()
                if cell or drops.get(name, "") is not msgspec.UNSET
            }
        return validate(row)

    return decode


def _checked(type_: Any) -> inspect.Type:
    """Return what msgspec knows of a type; a class that it takes as it is can never be a row."""
    info = inspect.type_info(type_)
    if isinstance(info, inspect.CustomType):
        raise TypeError(
            "type must be a Struct, a dataclass, a TypedDict, another type that msgspec can check, "
            f"or a class with model_validate, got {type_!r}"
        )
    return info


def _takes_a_mapping(info: inspect.Type) -> bool:
    return isinstance(info, _OF_A_MAPPING) and not getattr(info, "array_like", False)


def _validate(type_: Any, value: Any) -> Any:
    """Make a model within another type: msgspec asks for what it does not know."""
    if is_model(type_):
        return type_.model_validate(value)
    raise NotImplementedError(f"{type_!r} is no type that msgspec can check")


def _on_empty(info: inspect.Type) -> Any:
    """Return what an empty cell stands for; UNSET: nothing."""
    kinds = info.types if isinstance(info, inspect.UnionType) else (info,)
    if any(isinstance(kind, inspect.NoneType) for kind in kinds):
        return None
    texts = (inspect.StrType, inspect.AnyType)
    return "" if any(isinstance(kind, texts) for kind in kinds) else msgspec.UNSET


def _empty_in_model(model: Any) -> dict[str, Any]:
    """Return what an empty cell stands for in each column, by every name that the column may have."""
    found: dict[str, Any] = {}
    for name, field in getattr(model, "model_fields", {}).items():
        kinds = set(_kinds_of(field.annotation))
        if types.NoneType in kinds:
            stands_for: Any = None
        else:
            stands_for = "" if kinds & {str, Any, object} else msgspec.UNSET
        for alias in (name, field.alias, field.validation_alias):
            if isinstance(alias, str):
                found[alias] = stands_for
    return found


def _kinds_of(annotation: Any) -> list[Any]:
    """Return the members of a union, what is annotated looked through."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _kinds_of(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [kind for part in typing.get_args(annotation) for kind in _kinds_of(part)]
    return [annotation]
