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
from longmem.backbone.preallocated_cache import CacheMemory, Lease, PreallocatedLayer
from longmem.backbone.small import save_small_backbone

SIZE = (3, 1, 2, 10, 4)
"""Layers, batch, heads, tokens and width of a cache."""


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
    "reorder": lambda layer: layer.reorder_cache(torch.tensor([0])),
    "replace": lambda layer: setattr(layer, "keys", layer.keys.clone() + 1),
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


def test_rows_are_reordered_like_those_of_transformers() -> None:
    held, added = numbers(2, 2, 4, 3), numbers(2, 2, 1, 3)
    whole = torch.cat([held, held], dim=2)
    ours, own = PreallocatedLayer(whole, -whole, 4), DynamicLayer()
    own.update(held, -held)
    for layer in (ours, own):
        layer.reorder_cache(torch.tensor([1, 0]))
        layer.update(added, -added)
    assert_alike(ours, own)


def test_a_layer_of_inference_mode_grows_outside_of_it() -> None:
    with torch.inference_mode():
        ours, own = both(room=8)
    added = numbers(1, 2, 2, 3)
    for layer in (ours, own):
        layer.update(added, -added)
    assert_alike(ours, own)


def take(memory: CacheMemory, size: tuple[int, int, int, int, int] = SIZE) -> tuple[Tensor, Lease]:
    (keys, values), lease = memory.take(size, torch.float32, torch.device("cpu"))
    assert keys.shape == values.shape == size
    assert keys.data_ptr() != values.data_ptr()
    return keys, lease


def test_memory_is_used_again_once_its_lease_is_gone() -> None:
    memory = CacheMemory()
    first, lease = take(memory)
    other, _ = take(memory)
    assert other.data_ptr() != first.data_ptr(), "the first is still in use"
    del lease
    again, lease = take(memory)
    assert again.data_ptr() == first.data_ptr()
    del lease
    assert take(memory, (3, 1, 2, 6, 4))[0].data_ptr() == first.data_ptr()


@pytest.mark.parametrize("size", [(4, 1, 2, 10, 4), (3, 1, 3, 10, 4), (3, 1, 2, 11, 4), (3, 1, 2, 10, 8)])
def test_memory_for_more_numbers_is_new(size: tuple[int, int, int, int, int]) -> None:
    memory = CacheMemory()
    first, lease = take(memory)
    del lease
    assert take(memory, size)[0].data_ptr() != first.data_ptr()


@pytest.mark.parametrize("size", [(3, 1, 2, 6, 4), (1, 1, 4, 10, 4), (3, 1, 1, 20, 2)])
def test_strides_are_those_of_new_tensors(size: tuple[int, int, int, int, int]) -> None:
    """Products may sum in another order for other strides."""
    memory = CacheMemory()
    first, lease = take(memory)
    del lease
    again, _ = take(memory, size)
    assert again.data_ptr() == first.data_ptr()
    assert again.stride() == torch.empty(size).stride()


def test_memory_of_many_rows_is_not_kept() -> None:
    memory = CacheMemory()
    take(memory, (3, 5, 2, 10, 4))
    assert vars(memory)["_kept"] is None


def test_memory_that_cannot_be_written_is_not_used_again() -> None:
    memory = CacheMemory()
    with torch.inference_mode():
        take(memory)
    keys, lease = take(memory)
    keys.fill_(1.0)
    del lease
    with torch.inference_mode():
        again, lease = take(memory)
        again.fill_(2.0)
    assert again.data_ptr() == keys.data_ptr()
    del lease
    trained, lease = take(memory)
    trained += torch.ones(1, requires_grad=True)
    del lease
    assert not take(memory)[0].requires_grad


def test_copies_have_memory_of_their_own() -> None:
    memory = CacheMemory()
    first, lease = take(memory)
    del lease
    for again in (copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))):
        assert take(again)[0].data_ptr() != first.data_ptr()


def test_layers_keep_their_memory_without_their_cache(tmp_path: Path) -> None:
    save_small_backbone(tmp_path / "llama", "llama")
    backbone = Backbone.load(tmp_path / "llama")
    read = backbone.forward(torch.arange(1, 9)[None], range(backbone.num_layers), None)
    assembly = CacheAssembly(backbone)
    layers = list(assembly.assemble([read.keys[0]], [read.values[0]]).layers)
    before = [layer.keys.clone() for layer in layers]
    assembly.assemble([-read.keys[0]], [read.values[0]])
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(layers, before, strict=True))


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
    places = []
    for _ in range(2):
        cache = assembly.assemble(*given, room)
        places.append(cache.layers[-1].keys.data_ptr())
        found = torch.cat([backbone.run(tokens[:, :9], cache), backbone.run(tokens[:, 9:], cache)], dim=1)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        # the next one must read nothing that this one leaves
        del cache
        for kept in vars(assembly._memory)["_kept"] or ():
            kept.fill_(torch.nan)
    if batch == 1 and family != "gemma3_text":
        assert places[0] == places[1]
