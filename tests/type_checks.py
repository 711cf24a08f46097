# SPDX-License-Identifier: Apache-2.0
"""Run-time type checks of the tests: beartype checks every annotation, jaxtyping the shapes and dtypes of arrays.

pytest's option --jaxtyping-packages makes jaxtyping decorate all functions and classes of the named packages. Its own
decorator binds the arguments of each call and checks them twice. That took a third of the time of tests that run
models. `checked` replaces it, finds the same errors, and shares one generated check between equal nested functions.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from functools import wraps
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, TypeCheckError, jaxtyped

TYPED = beartype(conf=BeartypeConf(violation_type=TypeCheckError))


def checked(defined: Any) -> Any:
    """Return a function, or a dataclass's class, whose arguments and results are checked.

    All arrays of one call share the sizes of named axes. An annotation that cannot be resolved when its function is
    defined is not checked.
    """
    if isinstance(defined, type):
        if is_dataclass(defined) and "__init__" in vars(defined):
            defined.__init__ = checked(defined.__init__)  # type: ignore[misc]
        return defined
    checks = _checks_of(defined)

    @wraps(defined)
    def call(*args: Any, **kwargs: Any) -> Any:
        if jaxtyping.config.jaxtyping_disable:
            return defined(*args, **kwargs)
        if not checks.have_arrays:
            checks.arguments(*args, **kwargs)
            return checks.result(defined(*args, **kwargs))
        with jaxtyped("context"):
            checks.arguments(*args, **kwargs)
            return checks.result(defined(*args, **kwargs))

    return call


def _undecorated(*, typechecker: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return typechecker


# jaxtyping's import hook writes `@jaxtyping.jaxtyped(typechecker=checked)`
jaxtyping.jaxtyped = _undecorated  # type: ignore[assignment]


@dataclass(frozen=True)
class Checks:
    """Checks of one signature."""

    arguments: Callable[..., None]
    """Function that raises TypeCheckError for arguments of a wrong type."""
    result: Callable[[Any], Any]
    """Identity that raises TypeCheckError for a result of a wrong type."""
    have_arrays: bool
    """True if an annotation has shapes."""


_made: dict[Any, Checks] = {}


def _checks_of(function: Any) -> Checks:
    """Return the checks of a function; a nested function is defined often, and takes those of its first definition."""
    defaults = (function.__defaults__, tuple((function.__kwdefaults__ or {}).items()))
    names = (function.__module__, function.__qualname__)
    key = (names, function.__code__, tuple(function.__annotations__.items()), defaults)
    try:
        if key not in _made:
            _made[key] = _generated(function)
        return _made[key]
    except TypeError:  # a default value that cannot be hashed
        return _generated(function)


def _generated(function: Any) -> Checks:
    hints = _hints_of(function)
    returned = hints.pop("return", Any)
    parameters = [
        each.replace(annotation=each.empty, default=each.default if each.default is each.empty else None)
        for each in inspect.signature(function).parameters.values()
    ]
    scope: dict[str, Any] = {}
    exec(f"def arguments{inspect.Signature(parameters)}: pass", scope)  # beartype reads the code of a function
    arguments = scope["arguments"]
    arguments.__defaults__, arguments.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    arguments.__annotations__ = hints

    def result(value: Any) -> Any:
        return value

    result.__annotations__ = {"value": returned}
    for check in (arguments, result):
        check.__module__, check.__qualname__ = function.__module__, f"{function.__qualname__}.{check.__name__}"
    return Checks(TYPED(arguments), TYPED(result), any(map(_has_array, (returned, *hints.values()))))


def _hints_of(function: Any) -> dict[str, Any]:
    """Return the annotations that can be resolved; those of names under TYPE_CHECKING cannot."""
    hints: dict[str, Any] = {}
    for name, annotation in function.__annotations__.items():
        try:
            alone = SimpleNamespace(__annotations__={name: annotation})
            hints |= get_type_hints(alone, function.__globals__, include_extras=True)
        except NameError:
            continue
    return hints


def _has_array(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(map(_has_array, get_args(hint)))
