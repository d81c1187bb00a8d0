"""Values of types that msgspec does not know: models, and what the user's hooks make of others. Pure."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec.inspect

from microbatch._pure.models import dump, is_whole_model, text_of, validate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: One of each class that msgspec makes for a type it does not know.
_MADE: Final[tuple[Any, ...]] = (
    *(None, True, 0, 0.0, "", b"", [], {}),
    datetime.fromtimestamp(0, UTC),
    msgspec.msgpack.Ext(0, b""),
)


class Foreign:
    """What msgspec asks about values of types that it does not know.

    Models are taken apart and made by their own methods, whatever the hooks are.

    Args:
        enc_hook: The user's, as msgspec describes it; None without one.
        dec_hook: The same.
    """

    __slots__ = ("_dec_hook", "_enc_hook")

    def __init__(
        self,
        enc_hook: Callable[[Any], Any] | None,
        dec_hook: Callable[[type, Any], Any] | None,
    ) -> None:
        self._enc_hook = enc_hook
        self._dec_hook = dec_hook

    def encode(self, value: Any) -> Any:
        """Return what is stored for a value.

        Raises:
            TypeError: If nobody knows. And whatever the user's hook raises.
        """
        if is_whole_model(type(value)):
            return dump(value)
        if self._enc_hook is not None:
            with contextlib.suppress(NotImplementedError):  # so says a hook what is not its own
                return self._enc_hook(value)
        return text_of(value)

    def decode(self, kind: Any, value: Any) -> Any:
        """Return the value of a class that was made of what is stored.

        Raises:
            ValueError: If a model finds it wrong. And whatever the user's hook raises.
        """
        if is_whole_model(kind):
            return validate(kind, value)
        if self._dec_hook is not None:
            with contextlib.suppress(NotImplementedError):
                return self._dec_hook(kind, value)
        return value  # msgspec sees whether it fits


def unreadable(value_type: Any) -> str | None:
    """Return the name of a class within a type that nothing makes of stored values; None without one."""
    for kind in _unknown(msgspec.inspect.type_info(value_type), set()):
        if not is_whole_model(kind) and not any(_fits(made, kind) for made in _MADE):
            return getattr(kind, "__name__", None) or repr(kind)
    return None


def _unknown(part: Any, seen: set[int]) -> Iterator[Any]:
    """Yield each class that msgspec does not know, in a type as msgspec sees it."""
    if id(part) in seen:  # a type that holds itself
        return
    seen.add(id(part))
    if isinstance(part, msgspec.inspect.CustomType):
        yield part.cls
    elif isinstance(part, tuple):
        for one in part:
            yield from _unknown(one, seen)
    elif isinstance(part, (msgspec.inspect.Type, msgspec.inspect.Field)):
        for name in part.__struct_fields__:
            yield from _unknown(getattr(part, name), seen)


def _fits(value: Any, kind: Any) -> bool:
    try:
        return isinstance(value, kind)
    except TypeError:  # an alias, or a protocol that cannot be asked
        return False
