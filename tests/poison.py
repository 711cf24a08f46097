"""A model that ends its process when it reads a certain character, as a bug in a native library would."""

import os

from longmem.model import LongMem
from longmem.model_source import ModelSource
from longmem.types import EncodedSegment, Segment

POISON = "\x07"


class PoisonedModel(LongMem):
    """Opened by workers in their own processes; must not be asked to encode poison in the process of a test."""

    def encode(self, segment: Segment, prepare: bool = False) -> EncodedSegment:
        (token,) = self.tokenizer.sequence(POISON)[1:]
        if token in segment.tokens:
            os._exit(1)
        return super().encode(segment, prepare)


class PoisonedSource(ModelSource):
    """Opens any model as a PoisonedModel."""

    def open(self) -> LongMem:
        model = super().open()
        model.__class__ = PoisonedModel
        return model
