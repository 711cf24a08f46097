# SPDX-License-Identifier: Apache-2.0
"""Valid settings, invalid settings, and the choice of the memory layer."""

from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longmem.config import CHOICES, PAPER_FORM, LongMemConfig, with_fitting_sizes
from longmem.errors import ConfigError


def test_defaults_are_those_of_the_paper_with_another_way_of_reading() -> None:
    config, paper = LongMemConfig(), LongMemConfig(**PAPER_FORM)
    assert (paper.layer_reduction, paper.segment_tokens, paper.chunk_tokens) == (2, 1024, 4)
    assert (paper.memory_tokens, paper.top_k, paper.num_slots) == (65_536, 64, 16)
    assert paper.resolve_layer(24) == 17
    assert paper.trained_steps == 0
    ours = {"query": "key_space", "keys": "unit", "values": "next", "retrieval": "joint", "copy_head": True}
    assert config == replace(paper, chunk_tokens=1, **ours)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("segment_tokens", 0),
        ("segment_tokens", -4),
        ("segment_tokens", 1024.0),
        ("segment_tokens", "1024"),
        ("segment_tokens", None),
        ("chunk_tokens", 0),
        ("chunk_tokens", True),
        ("chunk_tokens", 3),
        ("chunk_tokens", 2048),
        ("copy_match_tokens", -1),
        ("copy_match_tokens", 4.0),
        ("top_k", 0),
        ("memory_tokens", -1),
        ("layer_reduction", 0),
        ("layer_reduction", 1.5),
        ("memory_layer", -1),
        ("memory_layer", "17"),
        ("trained_steps", -1),
    ],
)
@pytest.mark.usefixtures("as_users_run")
def test_numbers_that_cannot_work(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        LongMemConfig.from_dict({name: value})
    assert name in str(caught.value)
    assert str(value) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"), [("segment_tokens", 1023), ("top_k", 63), ("top_k", 2), ("memory_tokens", 65_537)]
)
def test_numbers_that_are_no_multiples_of_the_chunk(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"{name} must be a multiple of chunk_tokens=4, got {value}"):
        LongMemConfig(chunk_tokens=4, **{name: value})


@pytest.mark.parametrize("name", sorted(CHOICES))
@pytest.mark.usefixtures("as_users_run")
def test_names_that_are_none_of_the_choices(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LongMemConfig.from_dict({name: "zork"})
    for word in (name, "zork", *CHOICES[name]):
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ["copy_head", "fusion", "one_pass"])
@pytest.mark.parametrize("value", [1, "yes", None])
@pytest.mark.usefixtures("as_users_run")
def test_what_is_neither_true_nor_false(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be true or false, got {value!r}"):
        LongMemConfig.from_dict({name: value})


@pytest.mark.parametrize("name", ["scale_start", "gate_start"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1", True, None])
@pytest.mark.usefixtures("as_users_run")
def test_starts_that_are_no_numbers(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be a finite number, got {value!r}"):
        LongMemConfig.from_dict({name: value})


@pytest.mark.parametrize("retrieval", ["per_head", "joint"])
def test_queries_of_the_key_space_need_keys_that_can_be_compared(retrieval: Any) -> None:
    with pytest.raises(ConfigError, match="query=key_space needs keys=centred or keys=unit, got keys=raw"):
        LongMemConfig(query="key_space", keys="raw", retrieval=retrieval)


@pytest.mark.parametrize("value", ["float64", "fp16", "", None, 16])
@pytest.mark.usefixtures("as_users_run")
def test_types_that_cannot_be_stored(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"kv_dtype must be one of float32, float16, bfloat16, int8"):
        LongMemConfig.from_dict({"kv_dtype": value})


def test_a_memory_whose_repeats_have_no_room_is_refused() -> None:
    longest = 2**24 - 1
    assert LongMemConfig(memory_tokens=longest).memory_tokens == longest
    with pytest.raises(ConfigError, match=f"memory_tokens must be at most {longest} where repeats are copied"):
        LongMemConfig(memory_tokens=longest + 1)
    assert LongMemConfig(memory_tokens=longest + 1, copy_repeats=0).copy_repeats == 0
    assert LongMemConfig(memory_tokens=longest + 1, copy_head=False).copy_repeats == 8


def test_message_offers_numbers_that_work() -> None:
    with pytest.raises(ConfigError) as caught:
        LongMemConfig(segment_tokens=1022, chunk_tokens=4)
    assert "1020" in str(caught.value)
    assert "1024" in str(caught.value)
    with pytest.raises(ConfigError, match="try 4 or 4"):
        LongMemConfig(top_k=3, chunk_tokens=4)


def test_unknown_names_are_listed_with_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        LongMemConfig.from_dict({"chunk_size": 4, "topk": 3, "top_k": 64})
    message = str(caught.value)
    assert "'chunk_size'" in message
    assert "'topk'" in message
    assert all(field.name in message for field in fields(LongMemConfig))


@given(
    chunk=st.integers(1, 64),
    segment=st.integers(1, 64),
    memory=st.integers(0, 64),
    slots=st.integers(1, 64),
    kv_dtype=st.sampled_from(["float32", "float16", "bfloat16", "int8"]),
)
def test_multiples_of_the_chunk_work_and_survive_a_dictionary(
    chunk: int, segment: int, memory: int, slots: int, kv_dtype: Any
) -> None:
    config = LongMemConfig(
        chunk_tokens=chunk,
        segment_tokens=segment * chunk,
        memory_tokens=memory * chunk,
        top_k=slots * chunk,
        kv_dtype=kv_dtype,
    )
    assert config.num_slots == slots
    assert LongMemConfig.from_dict(vars(config)) == config


def test_settings_never_change() -> None:
    config = LongMemConfig()
    with pytest.raises(FrozenInstanceError):
        config.top_k = 128  # type: ignore[misc]
    assert len({config, LongMemConfig(), LongMemConfig(top_k=128)}) == 2


@given(reduction=st.integers(1, 6), sidenet_layers=st.integers(1, 20))
def test_memory_layer_is_the_highest_copied_one_within_three_quarters(reduction: int, sidenet_layers: int) -> None:
    num_layers = reduction * sidenet_layers
    layer = LongMemConfig(layer_reduction=reduction).resolve_layer(num_layers)
    copied = [m for m in range(num_layers) if m % reduction == reduction - 1]
    within = [m for m in copied if 4 * m <= 3 * num_layers]
    assert layer == (within[-1] if within else copied[0])


@pytest.mark.parametrize(("layers", "expected"), [(24, 17), (32, 23), (12, 9), (4, 3), (2, 1), (36, 27), (48, 35)])
def test_memory_layer_of_usual_depths(layers: int, expected: int) -> None:
    assert LongMemConfig().resolve_layer(layers) == expected


def test_memory_layer_as_configured() -> None:
    assert LongMemConfig(memory_layer=5).resolve_layer(24) == 5
    for wrong in (4, 24, 25):
        with pytest.raises(ConfigError, match=rf"memory_layer.*got {wrong}"):
            LongMemConfig(memory_layer=wrong).resolve_layer(24)
    with pytest.raises(ConfigError, match=r"layer_reduction=5.*24"):
        LongMemConfig(layer_reduction=5).resolve_layer(24)


@pytest.mark.parametrize("positions", [1, 5, 64, 512, 1024, 2048, 4096, 8192, 131_072])
def test_default_sizes_fit_the_positions(positions: int) -> None:
    sizes = with_fitting_sizes({"memory_layers": "all"}, positions)
    config = LongMemConfig.from_dict(sizes)
    assert config.segment_tokens == max(1, min(4096, positions // 2))
    needed = 1 + config.near_tokens + config.read_blocks * config.block_tokens + config.segment_tokens
    assert needed <= max(positions, 2)
    assert config.near_tokens <= LongMemConfig().near_tokens
    assert config.read_blocks <= LongMemConfig().read_blocks
    one = LongMemConfig.from_dict(with_fitting_sizes({"chunk_tokens": 1}, positions))
    assert one.segment_tokens == min(1024, positions)


def test_given_sizes_stay_and_the_others_fit_what_is_left() -> None:
    given = {"memory_layers": "all", "segment_tokens": 6000, "near_tokens": 100}
    sizes = with_fitting_sizes(given, 8192)
    assert {name: sizes[name] for name in given} == given
    assert sizes["read_blocks"] == LongMemConfig().read_blocks
    # too long in any case: the reader says so
    assert with_fitting_sizes({"memory_layers": "all", "segment_tokens": 9000}, 8192)["near_tokens"] == 0
    assert with_fitting_sizes({"segment_tokens": 9000}, 8192) == {"segment_tokens": 9000}
    assert with_fitting_sizes({"memory_layers": "all"}, None) == {"memory_layers": "all"}
    assert with_fitting_sizes({"chunk_tokens": 4}, 130)["segment_tokens"] == 128
