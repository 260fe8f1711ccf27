# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""`dataclass` for the engine's values, made without compiling anything.

The standard library writes and compiles the source of up to six methods for each class. With the engine's classes that
was half of what importing it cost (docs/dev/benchmarks.md). Here all classes share their methods. What a class is to
whoever uses it is the same, dataclasses.replace() and fields() included; to mypy it is the standard one.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

__all__ = ["dataclass"]

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(cls=None, *, frozen=False):
        """As dataclasses.dataclass, with the one option that is used here."""
        if cls is None:
            return lambda decorated: dataclass(decorated, frozen=frozen)
        # Without a docstring the standard one makes one of the signature, which costs more than all the rest.
        cls.__doc__ = cls.__doc__ or cls.__name__
        dataclasses.dataclass(init=False, repr=False, eq=False)(cls)
        _add_methods(cls, frozen)
        return cls


def _add_methods(cls: Any, frozen: bool) -> None:
    fields = dataclasses.fields(cls)
    names = tuple(field.name for field in fields)
    known = frozenset(names)
    defaults = {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}
    factories = [
        (field.name, field.default_factory) for field in fields if field.default_factory is not dataclasses.MISSING
    ]

    def init(self: Any, *values: Any, **named: Any) -> None:
        given = {**dict(zip(names, values)), **named}
        data = {**defaults, **given}
        for name, make in factories:
            if name not in given:
                data[name] = make()
        if data.keys() != known or len(given) != len(values) + len(named):
            raise TypeError(
                f"{cls.__name__}: takes {', '.join(names)}; got {len(values)} values and {', '.join(named) or 'no names'}"
            )
        # Not by setattr, which a frozen one forbids.
        self.__dict__.update(data)

    cls.__init__, cls.__repr__, cls.__eq__, cls.__hash__ = init, _repr, _equal, _hash if frozen else None
    if frozen:
        cls.__setattr__, cls.__delattr__ = _forbid, _forbid


def _values(self: Any) -> list[Any]:
    """Of the fields alone: __dict__ may hold what was computed of them as well (functools.cached_property)."""
    return [self.__dict__[name] for name in self.__dataclass_fields__]


def _repr(self: Any) -> str:
    pairs = zip(self.__dataclass_fields__, _values(self))
    return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in pairs)})"


def _equal(self: Any, other: Any) -> Any:
    return _values(self) == _values(other) if other.__class__ is self.__class__ else NotImplemented


def _hash(self: Any) -> int:
    return hash(tuple(_values(self)))


def _forbid(self: Any, name: str, *_value: Any) -> None:
    raise dataclasses.FrozenInstanceError(f"{type(self).__name__}.{name} cannot be changed")
