# SPDX-License-Identifier: Apache-2.0
"""One tree of errors, with complete documentation."""

import re

import pytest

from longmem import errors
from longmem.errors import CheckpointError, LongMemError, ModelError, StoreError, UnknownFamilyError

CLASSES = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}


def test_every_error_is_exported_and_drawn_in_the_tree() -> None:
    assert sorted(CLASSES) == errors.__all__ == sorted(errors.__all__)
    assert errors.__doc__ is not None
    drawn = set(re.findall(r"\b[A-Z]\w+Error\b", errors.__doc__)) - {"ValueError"}
    assert drawn == set(CLASSES)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_one_except_catches_all_and_each_says_what_it_is_for(name: str) -> None:
    assert issubclass(CLASSES[name], LongMemError)
    assert issubclass(CLASSES[name], ValueError)
    assert CLASSES[name].__doc__
    assert str(CLASSES[name]("expected this, got that")) == "expected this, got that"


def test_kinds() -> None:
    assert {CheckpointError, UnknownFamilyError} == set(ModelError.__subclasses__())
    kinds = {"FingerprintError", "ConflictError", "MissingBlockError", "CorruptionError", "QuotaError"}
    public = {kind for kind in StoreError.__subclasses__() if kind.__module__ == errors.__name__}
    assert {kind.__name__ for kind in public} == kinds
