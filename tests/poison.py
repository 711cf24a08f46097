# SPDX-License-Identifier: Apache-2.0
"""Models that fail on a certain character: one ends its process, like a bug in a native library; one gives NaN."""

import os
from time import sleep

import numpy as np
import torch
from jaxtyping import Int32

from longmem.backbone.tokenizer import Tokenizer
from longmem.model.longmem import LongMem
from longmem.model.source import ModelSource
from longmem.types import EncodedSegment, Segment

POISON = "\x07"
"""Character that ends its process, or gives NaN."""
BUG = "\x08"
"""Character that raises what no user can mend."""
LINGER_S = 1.0
"""Seconds before a LingeringModel fails; others queue their tasks behind it meanwhile."""


class PoisonedModel(LongMem):
    """Model for worker processes only; it must not encode poison in the process of a test."""

    def encode(self, segment: Segment, prepare: bool = False) -> EncodedSegment:
        (token,) = self.tokenizer.sequence(POISON)[1:]
        if token in segment.tokens:
            os._exit(1)
        return super().encode(segment, prepare)


class PoisonedSource(ModelSource):
    """Source that opens any model as a PoisonedModel."""

    def open(self) -> LongMem:
        model = super().open()
        model.__class__ = PoisonedModel
        return model


class NanSource(ModelSource):
    """Source that opens any model with a NaN embedding of POISON, which no file can hold."""

    def open(self) -> LongMem:
        model = super().open()
        (token,) = model.tokenizer.sequence(POISON)[1:]
        with torch.no_grad():
            model.backbone.model.get_input_embeddings().weight[token] = torch.nan
        return model


class PoisonedTokenizer(Tokenizer):
    """Tokenizer for worker processes only; it must not meet poison in the process of a test."""

    def sequence(self, text: str) -> Int32[np.ndarray, " tokens"]:
        if POISON in text:
            os._exit(1)
        return super().sequence(text)


class PoisonedTokenizerSource(ModelSource):
    """Source that opens any tokenizer as a PoisonedTokenizer."""

    def open_tokenizer(self) -> Tokenizer:
        tokenizer = super().open_tokenizer()
        tokenizer.__class__ = PoisonedTokenizer
        return tokenizer


class LingeringModel(LongMem):
    """Model for worker processes only, which lingers before it fails on POISON or BUG."""

    def encode(self, segment: Segment, prepare: bool = False) -> EncodedSegment:
        poison, bug = (self.tokenizer.sequence(character)[1] for character in (POISON, BUG))
        if poison in segment.tokens:
            sleep(LINGER_S)
            os._exit(1)
        if bug in segment.tokens:
            sleep(LINGER_S)
            raise RuntimeError("a bug of ours")
        return super().encode(segment, prepare)


class LingeringSource(ModelSource):
    """Source that opens any model as a LingeringModel."""

    def open(self) -> LongMem:
        model = super().open()
        model.__class__ = LingeringModel
        return model
