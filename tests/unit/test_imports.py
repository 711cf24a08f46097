# SPDX-License-Identifier: Apache-2.0
"""Imports without validators, and that a call is validated all the same."""

from typing import Any

import pydantic
import pytest

from longmem.store.config import MemoryStore
from longmem.system.imports import lazily_validated


class Counted:
    """Type of a parameter that counts the validators of it."""

    built = 0

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        Counted.built += 1
        return pydantic.TypeAdapter(int).core_schema


def test_validators_are_built_at_the_first_call() -> None:
    Counted.built = 0
    at_once = pydantic.validate_call
    with lazily_validated(__name__.partition(".")[0]):
        assert pydantic.validate_call is not at_once

        @pydantic.validate_call
        def doubled(number: Counted) -> int:
            """Return twice the number."""
            return 2 * number  # type: ignore[operator]

        @pydantic.validate_call(validate_return=True)
        def echoed(number: Counted) -> str:
            return number  # type: ignore[return-value]

    assert pydantic.validate_call is at_once
    assert Counted.built == 0
    assert (doubled.__name__, doubled.__doc__) == ("doubled", "Return twice the number.")
    assert doubled("4") == 8  # type: ignore[arg-type]
    assert doubled(5) == 10  # type: ignore[arg-type]
    with pytest.raises(pydantic.ValidationError, match="Input should be a valid integer"):
        doubled("four")  # type: ignore[arg-type]
    with pytest.raises(pydantic.ValidationError, match="Input should be a valid string"):
        echoed(3)  # type: ignore[arg-type]
    assert Counted.built == 2


def test_functions_of_other_packages_are_validated_at_once() -> None:
    Counted.built = 0
    with lazily_validated("another_package"):

        @pydantic.validate_call
        def doubled(number: Counted) -> int:
            return 2 * number  # type: ignore[operator]

    assert Counted.built == 1
    assert doubled("4") == 8  # type: ignore[arg-type]


def test_what_is_replaced_comes_back_after_an_error() -> None:
    at_once = pydantic.validate_call
    with pytest.raises(ImportError), lazily_validated("tests"):
        raise ImportError
    assert pydantic.validate_call is at_once


def test_the_rest_client_of_lancedb_validates_its_calls(tmp_path: Any) -> None:
    """LanceDB 0.40 imports lance_namespace_urllib3_client with the first store, and calls nothing of it."""
    with MemoryStore.open(str(tmp_path / "memory.lance")) as store:
        store.documents()
    from lance_namespace_urllib3_client.api.table_api import TableApi

    with pytest.raises(pydantic.ValidationError, match="id"):
        TableApi().describe_table(id=[], describe_table_request=3)  # type: ignore[arg-type]
