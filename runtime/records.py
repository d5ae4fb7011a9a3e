"""Define frozen dataclasses that share their methods, for the classes that ``predict`` imports.

``dataclasses`` compiles six methods for each class, which takes 0.3 ms a class and 10 ms of a cold ``predict``. Here
all classes share these methods. ``fields``, ``replace``, ``asdict`` and ``field`` of ``dataclasses`` work as usual.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, TypeVar

_T = TypeVar("_T")


def _init(self: Any, *arguments: Any, **named: Any) -> None:
    kind = type(self)
    values = dict(zip(kind.__match_args__, arguments))  # noqa: B905 (too many arguments are an error below)
    if len(arguments) > len(values) or not values.keys().isdisjoint(named):
        raise TypeError(f"{kind.__name__}() got too many values: {len(arguments)}, and {', '.join(named)}")
    values.update(named)
    for name, factory in kind._factories.items():
        if name not in values:
            values[name] = factory()
    values = {**kind._defaults, **values}
    if values.keys() != kind.__dataclass_fields__.keys():
        wrong = sorted(values.keys() ^ kind.__dataclass_fields__.keys())
        raise TypeError(f"{kind.__name__}() is missing, or does not take: {', '.join(wrong)}")
    self.__dict__.update(values)
    if post_init := getattr(self, "__post_init__", None):
        post_init()


def _repr(self: Any) -> str:
    values = (f"{field.name}={getattr(self, field.name)!r}" for field in dataclasses.fields(self) if field.repr)
    return f"{type(self).__qualname__}({', '.join(values)})"


def _compared(self: Any) -> tuple[Any, ...]:
    return tuple(getattr(self, field.name) for field in dataclasses.fields(self) if field.compare)


def _eq(self: Any, other: object) -> Any:
    return _compared(self) == _compared(other) if type(self) is type(other) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_compared(self))


def _setattr(self: Any, name: str, value: Any) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _delattr(self: Any, name: str) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")


_METHODS = {
    "__init__": _init,
    "__repr__": _repr,
    "__eq__": _eq,
    "__hash__": _hash,
    "__setattr__": _setattr,
    "__delattr__": _delattr,
}

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass  # noqa: PLC0414 (exported)
else:

    def dataclass(*, frozen: bool):
        """Decorate a class as ``dataclasses.dataclass(frozen=True)`` does; no other option exists."""

        def decorate(cls: type[_T]) -> type[_T]:
            dataclasses.dataclass(init=False, repr=False, eq=False)(cls)
            fields, missing = cls.__dataclass_fields__.values(), dataclasses.MISSING
            cls._defaults = {field.name: field.default for field in fields if field.default is not missing}
            cls._factories = {
                field.name: field.default_factory for field in fields if field.default_factory is not missing
            }
            for name, method in _METHODS.items():
                if name not in vars(cls) or name == "__hash__":
                    setattr(cls, name, method)
            return cls

        return decorate
