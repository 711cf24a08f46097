# SPDX-License-Identifier: Apache-2.0
"""Tests of the native engine: valid bounds, results unchanged by sketches, struct layouts, failures of the build."""

import ctypes
import os
import platform
import re
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import platformdirs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from longmem.errors import ConfigError
from longmem.memory.key_transform import KeySpace
from longmem.memory.window import SKETCHED_CHUNKS, WindowBuffer
from longmem.native import build, params
from longmem.retrieval import choose_engine, create_search
from longmem.retrieval.low_rank_bound import KeySketch, SketchBasis, fit_basis
from tests.blocks import IDENTITY, make_block


def decaying(rows: int, dim: int, seed: int, decay: float = 0.8) -> Tensor:
    """Return vectors whose dimensions have decreasing variance, like real keys."""
    random = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn((dim, dim), generator=random)).Q
    return torch.randn((rows, dim), generator=random) * decay ** torch.arange(dim) @ directions.T


def sketch_of(keys: Tensor, queries: Tensor) -> KeySketch:
    basis = fit_basis(keys, queries)
    assert basis is not None, "these keys can be sketched"
    return KeySketch(basis, basis.place_keys(keys))


def brute_force(queries: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return double-precision scores, best first, ties by age."""
    scores = queries.double() @ keys.double().T
    order = scores.sort(dim=1, descending=True, stable=True)
    return order.indices[:, :k], order.values[:, :k]


@given(
    num_keys=st.integers(1, 60),
    dim=st.sampled_from([16, 31, 64]),
    heads=st.integers(1, 2),
    decay=st.sampled_from([0.5, 0.8]),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    seed=st.integers(0, 10_000),
)
def test_a_bound_is_never_below_the_product(
    num_keys: int, dim: int, heads: int, decay: float, scale: float, seed: int
) -> None:
    """Keys and queries differ from those that the basis was fitted to."""
    fitted = torch.stack([decaying(200, dim, head, decay) for head in range(heads)])
    basis = fit_basis(fitted, fitted.flip(1))
    assert basis is not None
    random = torch.Generator().manual_seed(seed)
    keys = torch.randn((heads, num_keys, dim), generator=random) * scale
    queries = torch.randn((heads, 7, dim), generator=random)
    rows = basis.place_keys(keys)
    bounds = basis.place_queries(queries).double() @ rows[..., : basis.width].double().transpose(1, 2)
    products = queries.double() @ keys.double().transpose(1, 2)
    # sketches are rounded to float32 once
    slack = 2**-22 * basis.place_queries(queries).double().norm(dim=2)[..., None] * rows[..., -1].double()[:, None]
    assert bool((bounds + slack >= products).all())
    assert bool((rows[..., -1] >= keys.norm(dim=2) * (1 - 1e-6)).all())


@pytest.mark.parametrize("num_keys", [300, 5000])
@pytest.mark.parametrize("threads", [1, 3])
def test_what_is_found_is_the_best_of_double_precision(num_keys: int, threads: int) -> None:
    keys, queries = decaying(num_keys, 64, 1), decaying(50, 64, 2)
    expected_ids, expected = brute_force(queries, keys, 8)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for sketch in (None, sketch_of(keys[None], queries[None])):
            hits = create_search("native").search(queries[:, None], keys[None], 8, sketch)
            assert torch.equal(hits.ids[:, 0], expected_ids)
            torch.testing.assert_close(hits.scores[:, 0].double(), expected, rtol=1e-6, atol=1e-12)
    finally:
        torch.set_num_threads(before)


@given(
    num_keys=st.sampled_from([1, 31, 65, 700]),
    dim=st.sampled_from([1, 7, 16, 64, 200, 600]),
    k=st.integers(1, 20),
    spread=st.sampled_from([0.0, 1.0, 8.0]),
    odd=st.sampled_from([0.0, 1e-30, 1e-12, 1e12, 1e25, torch.inf, torch.nan]),
    equal=st.booleans(),
    scales=st.sampled_from([(1.0, 1.0), (1e10, 1e-25), (1e-25, 1e10), (1e-22, 1e-23), (1e-30, 1e-30), (3e-44, 1e10)]),
    seed=st.integers(0, 10_000),
)
def test_bounds_of_whole_numbers_lose_nothing(
    num_keys: int,
    dim: int,
    k: int,
    spread: float,
    odd: float,
    equal: bool,
    scales: tuple[float, float],
    seed: int,
) -> None:
    """Check adjacent keys whose norms differ by orders of magnitude, with some that cannot be quantised, and ties."""
    random = torch.Generator().manual_seed(seed)
    keys = torch.randn((num_keys, dim), generator=random)
    keys *= torch.exp(spread * torch.randn((num_keys, 1), generator=random))
    if equal:
        keys = keys[torch.randint(max(1, num_keys // 50), (num_keys,), generator=random)]
    keys[torch.randint(num_keys, (2,), generator=random)] *= odd
    keys *= scales[0]
    queries = torch.randn((9, dim), generator=random)
    queries[3] *= odd
    queries *= scales[1]
    k = min(k, num_keys)
    hits = create_search("native").search(queries[:, None], keys[None], k)
    scores = queries.double() @ keys.double().T
    for row, found, values in zip(scores, hits.ids[:, 0], hits.scores[:, 0], strict=True):
        numbers = row[~row.isnan()]
        num_found = min(k, len(numbers))
        assert found[num_found:].tolist() == [-1] * (k - num_found)
        found, values = found[:num_found], values[:num_found]
        assert len(set(found.tolist())) == num_found
        best = numbers.sort(descending=True).values[:num_found]
        # double sums in another order: where scores are nearly equal, the worst of both must be
        sizes = queries.double().norm(dim=1).nan_to_num(posinf=0).max() * keys.double().norm(dim=1).nan_to_num(posinf=0)
        torch.testing.assert_close(row[found], best, rtol=1e-12, atol=float(1e-12 * sizes.max()))
        torch.testing.assert_close(values, row[found].float(), rtol=1e-6, atol=float(1e-12 * sizes.max()) + 1e-44)


@pytest.mark.parametrize(
    ("of_keys", "of_queries"), [(1e-25, 1e10), (1e10, 1e-25), (1e-23, 1e-22), (1e-38, 1e-3), (1.0, 1.0)]
)
def test_numbers_too_small_for_squares_lose_nothing(of_keys: float, of_queries: float) -> None:
    """Check keys that differ by little, so that float32 rounding decides if the margins are too small."""
    random = torch.Generator().manual_seed(0)
    keys = torch.randn((1, 64), generator=random) + 1e-6 * torch.randn((3000, 64), generator=random)
    keys, queries = keys * of_keys, torch.randn((50, 64), generator=random) * of_queries
    hits = create_search("native").search(queries[:, None], keys[None], 8)
    found = (queries.double() @ keys.double().T).gather(1, hits.ids[:, 0])
    best = brute_force(queries, keys, 8)[1]
    torch.testing.assert_close(found, best, rtol=1e-12, atol=0)


def test_numbers_too_small_for_a_scale_are_not_zeros() -> None:
    random = torch.Generator().manual_seed(0)
    tiny = torch.randint(1, 31, (2000, 16), generator=random) * 2.0**-149
    large = 1e10 * torch.rand((5, 16), generator=random)
    for queries, keys in ((large, tiny), (tiny[:5], 1e10 * torch.rand((2000, 16), generator=random))):
        hits = create_search("native").search(queries[:, None], keys[None], 8)
        found = (queries.double() @ keys.double().T).gather(1, hits.ids[:, 0])
        torch.testing.assert_close(found, brute_force(queries, keys, 8)[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("level", "needs"),
    [
        ("x86-64", ""),
        ("haswell", "__AVX2__"),
        ("skylake-avx512", "__AVX512BW__"),
        ("cascadelake", "__AVX512VNNI__"),
    ],
)
@pytest.mark.skipif(platform.machine() != "x86_64", reason="of one family of processors")
def test_other_kinds_of_processors_find_the_same(
    level: str, needs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compile for processors with fewer instructions, and compare the results. Skip what this processor cannot run."""
    compiler = build.find_compiler()
    assert compiler is not None
    macros = subprocess.check_output([compiler, *build.FLAGS, "-dM", "-E", "-x", "c", os.devnull], text=True)
    if needs not in macros:
        pytest.skip(f"this processor has no {needs.strip('_')}")
    keys, queries = decaying(3000, 200, 1), decaying(50, 200, 2)
    sketch = sketch_of(keys[None], queries[None])
    searches = [(queries[:, None], keys[None], 8, each) for each in (None, sketch)]
    expected = [create_search("native").search(*arguments).ids for arguments in searches]
    flags = [f"-march={level}" if flag == "-march=native" else flag for flag in build.FLAGS]
    monkeypatch.setattr(build, "FLAGS", flags)
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / name)
    build.native_library.cache_clear()
    try:
        for arguments, ids in zip(searches, expected, strict=True):
            assert torch.equal(create_search("native").search(*arguments).ids, ids)
    finally:
        build.native_library.cache_clear()


def test_a_sample_that_promises_too_much() -> None:
    """Check sampled panels that hold all the good keys: fewer than k others reach the guess, and the search
    restarts."""
    keys = decaying(20_000, 64, 3)
    queries = decaying(20, 64, 4)
    # a sample begins there, on every kind of processor, and holds half of these keys or all
    sampled = torch.arange(20_000) % 1024 < 32
    keys[~sampled] *= 0.1
    few = keys.clone()
    few[sampled.nonzero()[40:, 0]] *= 0.1
    for case in (keys, few):
        hits = create_search("native").search(queries[:, None], case[None], 32)
        assert torch.equal(hits.ids[:, 0], brute_force(queries, case, 32)[0])


def test_equal_scores_go_to_the_older_chunk() -> None:
    hits = create_search("native").search(torch.ones(3, 1, 8), torch.ones(1, 700, 8), 5)
    assert hits.ids[:, 0].tolist() == [[0, 1, 2, 3, 4]] * 3


def test_what_is_not_a_number_finds_nothing() -> None:
    """FAISS behaves equally; the model reports the NaN itself."""
    queries = torch.ones(2, 1, 8)
    queries[1, 0, 3] = torch.nan
    hits = create_search("native").search(queries, torch.ones(1, 9, 8), 3)
    assert hits.ids[:, 0].tolist() == [[0, 1, 2], [-1, -1, -1]]
    assert hits.scores[1].tolist() == [[-torch.inf] * 3]


def test_native_isotropic_keys_are_not_sketched() -> None:
    keys = torch.randn((1, 4000, 32), generator=torch.Generator().manual_seed(0))
    assert fit_basis(keys, keys) is None


def test_few_or_equal_keys_can_be_fitted() -> None:
    for keys in (torch.zeros(1, 5, 16), torch.ones(1, 5, 16), decaying(2, 16, 0)[None]):
        basis = fit_basis(keys, keys)
        assert basis is None or bool(basis.place_keys(keys).isfinite().all())


@pytest.mark.parametrize("retrieval", ["joint", "per_head"])
def test_views_bring_the_sketch_of_their_own_chunks(retrieval: str) -> None:
    """Check views through growth and reallocation, of any slice; sketches exist only where requested."""
    identity = replace(IDENTITY, head_dim=24)
    mean = torch.zeros(2, identity.head_dim)
    key_space = KeySpace("centred", retrieval, mean, sketched=True)  # type: ignore[arg-type]
    sketched, plain = WindowBuffer(2**20, key_space=key_space), WindowBuffer(2**20)
    scale = (0.7 ** torch.arange(identity.head_dim)).half().numpy()
    num_segments = 3 * SKETCHED_CHUNKS * IDENTITY.chunk_tokens // IDENTITY.segment_tokens
    for segment in range(num_segments):
        block = make_block(segment=segment, identity=identity)
        block.keys[:] *= scale
        sketched.append(block)
        plain.append(block)
    end = num_segments * IDENTITY.segment_tokens
    for start in (0, 32, end // 2):
        view = sketched.view(start, end)
        assert plain.view(start, end).sketch is None
        assert view.sketch is not None
        basis: SketchBasis = view.sketch.basis
        torch.testing.assert_close(view.sketch.rows, basis.place_keys(view.chunk_keys))
        queries = view.chunk_keys[:, :40].transpose(0, 1).contiguous()
        with_it = create_search("native").search(queries, view.chunk_keys, 5, view.sketch)
        assert torch.equal(with_it.ids, create_search("native").search(queries, view.chunk_keys, 5).ids)


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / name)
    build.native_library.cache_clear()
    yield tmp_path / "longmem"
    build.native_library.cache_clear()


def test_it_is_built_once_and_kept(cache_folder: Path) -> None:
    build.native_library()
    (built,) = cache_folder.iterdir()
    before = built.stat().st_mtime_ns
    build.native_library.cache_clear()
    build.native_library()
    assert [path.stat().st_mtime_ns for path in cache_folder.iterdir()] == [before]


def test_native_sources_list_every_c_file() -> None:
    """The name of the compiled library is a digest of these files, so a missing one would leave a stale library."""
    folder = Path(build.__file__).parent
    assert {*build.SOURCES, *build.HEADERS} == {*folder.glob("*.c"), *folder.glob("*.h")}


def test_native_structs_have_the_layout_of_c() -> None:
    """All of them are checked at load; a struct that `params.h` declares and Python does not would be missing here."""
    header = (Path(build.__file__).parent / "params.h").read_text()
    declared = set(re.findall(r"^} (\w+);$", header, flags=re.MULTILINE))
    assert {struct.c_name() for struct in params.STRUCTS} == declared
    for struct in params.STRUCTS:
        params.check_layout(build.native_library(), struct)


def planted(struct: type[params.NativeStruct], fields: list[tuple[str, Any]]) -> type[params.NativeStruct]:
    return type(struct.__name__, (params.NativeStruct,), {"_fields_": fields})


def test_native_struct_in_another_order_is_refused() -> None:
    fields = list(params.TopkParams._fields_)
    names = [name for name, *_ in fields]
    first, second = names.index("dim"), names.index("k")
    fields[first], fields[second] = fields[second], fields[first]
    with pytest.raises(AssertionError, match=r"TopkParams\.k: offset and size are \(\d+, 8\) in params.py"):
        params.check_layout(build.native_library(), planted(params.TopkParams, fields))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fields: [*fields, ("more", ctypes.c_int64)], "GatherParams has 11 fields in params.py, 10 in C"),
        (lambda fields: fields[:-1], "GatherParams has 9 fields in params.py, 10 in C"),
        (lambda fields: [*fields[:-1], ("output", ctypes.c_double * 2)], r"GatherParams\.: offset and size are"),
        (lambda fields: [*fields[:-1], ("out", ctypes.c_void_p)], r"GatherParams\.out: .* \(-1, -1\) in the C library"),
        (lambda fields: [*fields[:3], ("head_stride", ctypes.c_int32), *fields[4:]], r"GatherParams\.head_stride: "),
    ],
    ids=["one more", "one less", "another total", "another name", "another size"],
)
def test_native_struct_with_other_fields_is_refused(
    change: Callable[[list[tuple[str, Any]]], list[tuple[str, Any]]], message: str
) -> None:
    struct = planted(params.GatherParams, change(list(params.GatherParams._fields_)))
    with pytest.raises(AssertionError, match=message):
        params.check_layout(build.native_library(), struct)


@pytest.mark.parametrize("fields", [{"first": 0, "stride": 1}, {"first": 0, "stride": 1, "dtype": 0, "kind": 0}])
def test_native_struct_needs_a_value_for_each_field(fields: dict[str, int]) -> None:
    with pytest.raises(AssertionError, match="RowMatrix has frozenset"):
        params.RowMatrix(**fields)


def fake_compiler(folder: Path, script: str) -> str:
    path = folder / "cc"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


MAKES_NO_LIBRARY = """
while [ $# -gt 0 ]; do
    if [ "$1" = -o ]; then echo no library > "$2"; fi
    shift
done
"""


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "needs a C compiler .* none is on PATH: install one, or use search=torch"),
        (lambda folder: fake_compiler(folder, "echo broken >&2; exit 1"), "failed with 'broken'; use another compiler"),
        (lambda folder: fake_compiler(folder, MAKES_NO_LIBRARY), "cannot use .*; make its folder writable"),
    ],
    ids=["none", "fails", "makes no library"],
)
def test_compilers_that_cannot_be_used(
    prepare: Callable[[Path], str | None],
    message: str,
    cache_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiler = prepare(tmp_path)
    monkeypatch.setattr(build, "find_compiler", lambda: compiler)
    with pytest.raises(ConfigError, match=f"search=native.*{message}"):
        create_search("native")


def test_a_cache_that_cannot_be_written(cache_folder: Path) -> None:
    cache_folder.write_text("a file where the folder should be")
    with pytest.raises(ConfigError, match=r"cannot use .*; make its folder writable, or use search=torch"):
        create_search("native")


def test_auto_is_native_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_engine("auto", "cpu") == "native"
    assert choose_engine("auto", "cuda") == "torch"
    assert choose_engine("faiss", "cpu") == "faiss"
    monkeypatch.setenv("PATH", os.devnull)
    assert choose_engine("auto", "cpu") == "torch"
