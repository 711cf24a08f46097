# SPDX-License-Identifier: Apache-2.0
"""Run-time type checks of the tests themselves: planted violations are found, and nothing else is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from jaxtyping import Float, TypeCheckError

import longmem.kv_format
from tests.type_checks import checked

TALL, WIDE = np.zeros((3, 2)), np.zeros((2, 3))


@checked
def product(
    left: Float[np.ndarray, "rows inner"],
    right: Float[np.ndarray, "inner columns"] | None = None,
    *more: int,
    name: str = "",
    **scales: float,
) -> Float[np.ndarray, "rows columns"]:
    return left if right is None else left @ right


@checked
def transposed(matrix: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, "columns rows"]:
    return matrix


@checked
def digits(count: int) -> Iterator[int]:
    yield from range(count)


@checked
@dataclass(frozen=True)
class Pair:
    left: Float[np.ndarray, "rows left"]
    right: Float[np.ndarray, "rows right"]
    name: "str | None" = None


@pytest.mark.parametrize(
    ("function", "arguments", "keywords"),
    [
        (product, (TALL, TALL), {}),
        (product, (TALL.astype(int), WIDE), {}),
        (product, (TALL, WIDE, "1"), {}),
        (product, (TALL, WIDE), {"name": 1}),
        (product, (TALL, WIDE), {"scale": "1"}),
        (transposed, (TALL,), {}),
        (digits, ("3",), {}),
        (Pair, (TALL, WIDE), {}),
        (Pair, (TALL, TALL, 1), {}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_checked_wrong_type_or_shape_is_found(
    function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> None:
    with pytest.raises(TypeCheckError):
        function(*arguments, **keywords)


def test_checked_right_types_give_the_result() -> None:
    assert product(TALL, WIDE, 1, name="one", scale=2.0).shape == (3, 3)
    # names of axes hold for one call
    assert product(WIDE, TALL).shape == (2, 2)
    assert transposed(np.ones((2, 2))).sum() == 4
    assert list(digits(3)) == [0, 1, 2]
    assert Pair(TALL, TALL).name is None


def test_checked_wrong_number_of_arguments_is_python_s_own_error() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'left'"):
        product()


def test_checked_nested_functions_of_one_definition_stay_apart() -> None:
    def nested(number: int, kind: Any) -> Callable[[Any], Any]:
        @checked
        def inner(value: kind) -> int:
            return number

        return inner

    one, two, text = nested(1, int), nested(2, int), nested(3, str)
    assert (one(0), two(0), text("")) == (1, 2, 3)
    for function, wrong in ((one, ""), (two, ""), (text, 0)):
        with pytest.raises(TypeCheckError):
            function(wrong)


def test_checked_as_users_run_checks_nothing(as_users_run: None) -> None:
    assert product(TALL, None, "1", name=1) is TALL


def test_checked_holds_for_the_product() -> None:
    with pytest.raises(TypeCheckError):
        longmem.kv_format.rounded("no tensor", "float16")
