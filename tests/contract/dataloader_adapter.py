"""aiodataloader over Loader: equal keys get one future, which anybody may end, and the exception that was raised."""

from __future__ import annotations

import asyncio
from typing import Any, Generic, TypeVar

from microbatch import Loader

K, R = TypeVar("K"), TypeVar("R")


class Raised(Exception):
    """Carries an exception through the copies that each awaiter gets."""


class DataLoader(Generic[K, R]):
    def __init__(self, batch_load_fn: Any, max_batch_size: int = 1_000, **settings: Any) -> None:
        async def handler(keys: list[Any]) -> list[Any]:
            try:
                values = await batch_load_fn(keys)
            except Exception as error:
                raise Raised(error) from error
            return [Raised(value) if isinstance(value, Exception) else value for value in values]

        self._loader = Loader(handler, max_batch_size=max_batch_size, telemetry=False, **settings)
        self._promises: dict[Any, Any] = {}  # of loads that are on their way

    def load(self, key: Any) -> Any:
        if key is None:
            raise TypeError("The loader.load() function must be called with a value")
        load: Any = self._loader.load(key)
        promise = self._promises.get(key)
        if promise is None:
            promise = self._promises[key] = asyncio.get_running_loop().create_future()
            load.add_done_callback(lambda _: self._keep(key, promise, load))
        return promise

    def _keep(self, key: Any, promise: Any, load: Any) -> None:
        del self._promises[key]
        if not promise.done():
            if (error := load.exception()) is not None:
                promise.set_exception(error.args[0] if isinstance(error, Raised) else error)
            else:
                promise.set_result(load.result())

    def load_many(self, keys: Any) -> Any:
        return asyncio.gather(*[self.load(key) for key in keys])

    def clear(self, key: Any) -> DataLoader:
        self._loader.clear(key)
        return self

    def clear_all(self) -> DataLoader:
        self._loader.clear_all()
        return self

    def prime(self, key: Any, value: Any) -> DataLoader:
        self._loader.prime(key, value)
        return self
