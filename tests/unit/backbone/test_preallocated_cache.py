# SPDX-License-Identifier: Apache-2.0
"""Layers of a cache in memory that is used again: the states of transformers' own, and no cache in another's memory."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from longmem.backbone.backbone import Backbone
from longmem.backbone.cache_assembly import CacheAssembly
from longmem.backbone.preallocated_cache import CacheMemory, PreallocatedLayer
from longmem.backbone.small import save_small_backbone

SIZE = (3, 1, 2, 10, 4)
"""Layers, batch, heads, tokens and width of a cache."""


class User:
    """Stands for a cache, of which memory knows only whether it lives."""


def numbers(*size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size)))


def both(room: int) -> tuple[PreallocatedLayer, DynamicLayer]:
    """Return a layer with 4 tokens and room for more, and transformers' own with the same tokens."""
    held = numbers(1, 2, 4, 3)
    whole = torch.full((1, 2, 4 + room, 3), torch.nan)
    whole[:, :, :4] = held
    own = DynamicLayer()
    own.update(held, -held)
    return PreallocatedLayer(whole, -whole, 4), own


def assert_alike(ours: PreallocatedLayer, own: DynamicLayer) -> None:
    assert ours.get_seq_length() == own.get_seq_length()
    assert torch.equal(ours.keys, own.keys)
    assert torch.equal(ours.values, own.values)


@pytest.mark.parametrize("room", [0, 2, 5, 6, 20])
def test_a_layer_goes_on_like_that_of_transformers(room: int) -> None:
    ours, own = both(room)
    assert_alike(ours, own)
    for count in (2, 3, 1):
        added = numbers(1, 2, count, 3)
        for found, expected in zip(ours.update(added, 2 * added), own.update(added, 2 * added), strict=True):
            assert torch.equal(found, expected)
        assert_alike(ours, own)


CHANGES: dict[str, Any] = {
    "repeat": lambda layer: layer.batch_repeat_interleave(3),
    "select": lambda layer: layer.batch_select_indices(torch.tensor([0, 0])),
    "crop": lambda layer: layer.crop(-2),
    "reset": lambda layer: layer.reset(),
}


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_a_changed_layer_goes_on_like_that_of_transformers(change: str) -> None:
    ours, own = both(room=8)
    for layer in (ours, own):
        CHANGES[change](layer)
    rows = {"repeat": 3, "select": 2}.get(change, 1)
    added = numbers(rows, 2, 2, 3)
    for layer in (ours, own):
        layer.update(added, -added)
    assert_alike(ours, own)


def test_states_of_another_size_are_no_states_of_the_layer() -> None:
    ours, _ = both(room=8)
    with pytest.raises(AssertionError):
        ours.update(numbers(2, 2, 1, 3), numbers(2, 2, 1, 3))
    with pytest.raises(AssertionError):
        ours.update(numbers(1, 2, 1, 3).bfloat16(), numbers(1, 2, 1, 3).bfloat16())


def take(memory: CacheMemory, user: User, size: tuple[int, int, int, int, int] = SIZE) -> tuple[Tensor, Tensor]:
    keys, values = memory.take(user, size, torch.float32, torch.device("cpu"))
    assert keys.shape == values.shape == size
    assert keys.data_ptr() != values.data_ptr()
    return keys, values


def test_memory_is_used_again_once_its_cache_is_gone() -> None:
    memory, first = CacheMemory(), User()
    place = take(memory, first)[0].data_ptr()
    second = User()
    assert take(memory, second)[0].data_ptr() != place, "the first still lives"
    del first
    third = User()
    assert take(memory, third)[0].data_ptr() == place
    del third
    fewer = (3, 1, 2, 6, 4)
    assert take(memory, User(), fewer)[0].data_ptr() == place


@pytest.mark.parametrize("size", [(4, 1, 2, 10, 4), (3, 1, 3, 10, 4), (3, 1, 2, 11, 4), (3, 1, 2, 10, 8)])
def test_memory_of_another_size_is_new(size: tuple[int, int, int, int, int]) -> None:
    memory = CacheMemory()
    take(memory, User())
    take(memory, User(), size)
    take(memory, User())


def test_memory_of_many_rows_is_not_kept() -> None:
    memory, user = CacheMemory(), User()
    take(memory, user, (3, 5, 2, 10, 4))
    assert vars(memory)["_kept"] is None


def test_memory_of_inference_mode_is_not_written_outside_of_it() -> None:
    memory = CacheMemory()
    with torch.inference_mode():
        take(memory, User())
    keys, _ = take(memory, User())
    keys.fill_(1.0)
    with torch.inference_mode():
        again, _ = take(memory, User())
        again.fill_(2.0)


def test_copies_have_memory_of_their_own() -> None:
    memory, user = CacheMemory(), User()
    place = take(memory, user)[0].data_ptr()
    for again in (copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))):
        other = User()
        assert take(again, other)[0].data_ptr() != place


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "bloom"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("room", [0, 7, 16, 30])
def test_a_backbone_reads_the_same_in_any_room(tmp_path: Path, family: str, batch: int, room: int) -> None:
    save_small_backbone(tmp_path / family, family)
    backbone = Backbone.load(tmp_path / family)
    tokens = torch.randint(0, 200, (batch, 16), generator=torch.Generator().manual_seed(1))
    read = backbone.forward(tokens[:1], range(backbone.num_layers), None)
    assembly, given = CacheAssembly(backbone), ([read.keys[0]], [read.values[0]], batch)
    expected = backbone.run(tokens, CacheAssembly(backbone).assemble(*given))
    for _ in range(2):
        # the second in the memory of the first, which holds its tokens
        cache = assembly.assemble(*given, room)
        found = torch.cat([backbone.run(tokens[:, :9], cache), backbone.run(tokens[:, 9:], cache)], dim=1)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
