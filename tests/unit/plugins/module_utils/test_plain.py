# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine's dataclasses behave as the standard library's."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import plain


def made_by(factory: Any) -> Any:
    """A field with its own value in each object. pylint does not see that these classes are dataclasses."""
    return dataclasses.field(default_factory=factory)  # pylint: disable=invalid-field-call


def _classes(decorate: Any) -> tuple[Any, Any]:
    @decorate(frozen=True)
    class Point:
        """A point."""

        x: int
        y: int = 2
        more: dict[str, int] = made_by(dict)

    @decorate
    class Loose:
        x: int = 1
        seen: list[int] = made_by(list)

    return Point, Loose


@pytest.fixture(params=[plain.dataclass, dataclasses.dataclass], ids=["plain", "standard"])
def classes(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return _classes(request.param)


def test_values(classes: tuple[Any, Any]) -> None:
    point, loose = classes
    assert (point(1).x, point(1).y, point(1, y=3).y, point(x=5, more={"a": 1}).more) == (1, 2, 3, {"a": 1})
    assert point(1).more is not point(1).more
    assert [field.name for field in dataclasses.fields(point)] == ["x", "y", "more"]
    assert dataclasses.replace(point(1), y=7) == point(1, 7)
    assert dataclasses.asdict(loose()) == {"x": 1, "seen": []}
    assert repr(point(1)).endswith("Point(x=1, y=2, more={})")


@pytest.mark.parametrize(("values", "named"), [((), {}), ((1, 2, {}, 4), {}), ((1,), {"x": 1}), ((1,), {"z": 1})])
def test_wrong_values(classes: tuple[Any, Any], values: Any, named: Any) -> None:
    with pytest.raises(TypeError):
        classes[0](*values, **named)


def test_equality_is_by_value_and_by_class(classes: tuple[Any, Any]) -> None:
    point, loose = classes
    assert point(1) == point(1, 2)
    assert point(1) != point(2)
    assert point(1) != loose(1)
    assert hash(point(1, more=())) == hash(point(1, 2, ()))
    with pytest.raises(TypeError):
        hash(loose())


def test_frozen(classes: tuple[Any, Any]) -> None:
    point, loose = classes
    with pytest.raises(dataclasses.FrozenInstanceError):
        point(1).x = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        del point(1).x
    changed = loose()
    changed.x = 9
    assert changed == loose(9)
