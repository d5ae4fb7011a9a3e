"""``mri_edge.records`` makes classes that behave like frozen dataclasses."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from dataclasses import field
from typing import Any

import pytest

from mri_edge import records


def _define(dataclass: Any) -> Any:
    @dataclass(frozen=True)
    class Scan:
        """A class with each kind of field."""

        name: str
        size: int = 2
        found: list[int] = field(default_factory=list)
        pixels: Any = field(default=None, repr=False, compare=False)

        def __post_init__(self) -> None:
            if self.size < 0:
                raise ValueError("negative")

    return Scan


Ours, Standard = _define(records.dataclass), _define(dataclasses.dataclass)
BOTH = pytest.mark.parametrize("kind", [Ours, Standard], ids=["records", "dataclasses"])


@records.dataclass(frozen=True)
class Point:
    """At the top level, to be pickled."""

    x: int
    y: int = 0


@BOTH
def test_values_and_defaults(kind: Any) -> None:
    scan = kind("a")
    assert (scan.name, scan.size, scan.found, scan.pixels) == ("a", 2, [], None)
    assert scan.found is not kind("a").found
    assert kind("a", 3, [1], 5) == kind(name="a", size=3, found=[1], pixels=6)
    assert kind("a") != kind("b")
    assert kind("a") != "a"
    assert repr(kind("a", 1)).endswith("Scan(name='a', size=1, found=[])")
    assert kind.__match_args__ == ("name", "size", "found", "pixels")


@BOTH
@pytest.mark.parametrize(
    ("arguments", "named"), [((), {}), (("a",), {"name": "b"}), (("a",), {"other": 1}), ((1, 2, [], 4, 5), {})]
)
def test_wrong_arguments(kind: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        kind(*arguments, **named)


@BOTH
def test_frozen(kind: Any) -> None:
    scan = kind("a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        scan.name = "b"
    with pytest.raises(dataclasses.FrozenInstanceError):
        del scan.name
    with pytest.raises(ValueError, match="negative"):
        dataclasses.replace(scan, size=-1)


@BOTH
def test_functions_of_dataclasses(kind: Any) -> None:
    scan = kind("a", found=[1])
    assert dataclasses.is_dataclass(kind)
    assert dataclasses.asdict(scan) == {"name": "a", "size": 2, "found": [1], "pixels": None}
    assert dataclasses.replace(scan, size=4) == kind("a", 4, [1])
    assert [field.name for field in dataclasses.fields(kind)] == ["name", "size", "found", "pixels"]


def test_hash_copy_and_pickle() -> None:
    point = Point(1, y=2)
    assert hash(point) == hash(Point(1, 2))
    assert {point: "found"}[Point(1, 2)] == "found"
    assert pickle.loads(pickle.dumps(point)) == copy.deepcopy(point) == point  # noqa: S301 (made in this line)
