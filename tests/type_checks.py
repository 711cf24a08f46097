# SPDX-License-Identifier: Apache-2.0
"""Run-time type checks of the tests: beartype, with one generated check for each signature."""

from collections.abc import Callable
from typing import Any

from beartype import beartype

_made: dict[Any, Callable[..., Any]] = {}


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with a check of its arguments and its result.

    jaxtyping calls this with functions of its own, which have the signature of a function of the product and an empty
    body. It does so for a nested function each time the enclosing one runs. Generating the check takes milliseconds,
    which was most of the time of tests that run models, so equal signatures share one.
    """
    places = (function.__module__, function.__qualname__, function.__code__)
    hints = tuple(function.__annotations__.items())
    defaults = (function.__defaults__, tuple((function.__kwdefaults__ or {}).items()))
    try:
        key = (places, hints, defaults)
        if key not in _made:
            _made[key] = beartype(function)
        return _made[key]
    except TypeError:  # a default value that cannot be hashed
        return beartype(function)
