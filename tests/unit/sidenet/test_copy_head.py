"""The copy head against a dictionary of what could be copied, one token at a time, in float64."""

import copy
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from longmem.backbone.families import AttentionShape
from longmem.config import LongMemConfig
from longmem.memory.view import MemoryView
from longmem.search import create_search
from longmem.sidenet.copy_head import (
    AGE,
    COPY_SCALE,
    FEATURE_BIAS,
    FEATURE_WEIGHTS,
    RUN_BIAS,
    Copies,
    CopyHead,
    _runs,
    _shares,
)
from longmem.sidenet.places import Places, num_searchable, places_of
from longmem.sidenet.reading import MemoryReader, Reading

RandomView = Callable[..., MemoryView]

SHAPE = AttentionShape(4, 2, 8)
SCALE, HIDDEN, VOCABULARY = 0.3, 6, 12
FORMS = [("unit", "next", "joint"), ("unit", "same", "per_head"), ("centred", "next", "per_head")]
TOLERANCE = 1e-5
"""Of probabilities: sums of a few dozen float32 products of numbers below 10."""


@dataclass
class Case:
    """A copy head whose every weight has moved, and what it is given."""

    head: CopyHead
    reading: Reading
    view: MemoryView
    hidden: Tensor
    context: Tensor
    config: LongMemConfig

    def copies(self) -> Copies:
        found: Copies = self.head(self.reading, self.view, self.hidden, self.context)
        return found


def config_of(form: tuple[str, ...] = FORMS[0], **settings: Any) -> LongMemConfig:
    names = dict(zip(("keys", "values", "retrieval"), form, strict=True))
    sizes = {"segment_tokens": 30, "memory_tokens": 300, "chunk_tokens": 3, "top_k": 12}
    return LongMemConfig.from_dict(sizes | names | settings)


def moved(module: Any, seed: int = 7) -> Any:
    """Every weight away from its start, as after training."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name != "key_mean":
                parameter += 0.2 * torch.randn(parameter.shape, generator=random)
    return module


def case_of(
    random_view: RandomView,
    form: tuple[str, ...] = FORMS[0],
    tokens: int = 5,
    before: int = 4,
    start: bool = False,
    gradients: bool = False,
    lengths: list[int] | None = None,
    **settings: Any,
) -> Case:
    """A text of few letters, so that much of it repeats; `before` tokens of the segment were read earlier."""
    random = torch.Generator().manual_seed(3)
    config = config_of(form, **settings)
    reader = MemoryReader(SHAPE, config, SCALE).requires_grad_(False)
    if not start:
        moved(reader)
    view = random_view(2, 8, chunks=12, chunk=3, lengths=lengths, key_space=reader.key_space)
    view.tokens.remainder_(3)
    queries, keys = torch.randn((tokens, 4, 8), generator=random), torch.randn((tokens, 2, 8), generator=random)
    reading = reader.read(queries, keys, view, create_search("torch"))
    assert reading is not None
    head = CopyHead(HIDDEN, config, SHAPE.kv_heads, SCALE)
    return Case(
        (head if start else moved(head)).requires_grad_(gradients),
        reading,
        view,
        torch.randn((tokens, HIDDEN), generator=random),
        torch.randint(3, (before + tokens,), generator=random),
        config,
    )


def naive_run(text: list[int], place: int, reader: int, longest: int) -> int:
    run = 0
    while run < longest and place - run >= 0 and text[place - run] == text[reader - run]:
        run += 1
    return run


def text_of(view: MemoryView) -> list[int]:
    return [token for row, length in zip(view.tokens, view.lengths, strict=True) for token in row[:length].tolist()]


def naive_copies(case: Case) -> tuple[list[dict[int, float]], list[float]]:
    """For each reading token the probability of every copied token, and the logit of their share."""
    head, longest = copy.deepcopy(case.head).double().requires_grad_(False), len(case.head.run_bias) - 1
    past, segment = text_of(case.view), case.context.tolist()
    text = past + segment
    distributions, logits = [], []
    for token in range(len(case.hidden)):
        reader = len(text) - len(case.hidden) + token
        distribution: dict[int, float] = defaultdict(float)
        products, runs = [], []
        heads = case.reading.products.shape[1]
        for search in range(heads):
            valid = case.reading.places.valid[token, search].tolist()
            places = case.reading.places.index[token, search].tolist()
            found = case.reading.products[token, search].tolist()
            scores = {}
            for place, similarity, there in zip(places, found, valid, strict=True):
                if there:
                    run = naive_run(text, place, reader, longest)
                    products.append(similarity)
                    runs.append(run)
                    bias, age = float(head.run_bias[run]), float(head.age) * math.log(reader - place)
                    scores[place] = math.exp(float(head.log_scale.exp()) * similarity + bias - age)
            for place, score in scores.items():
                distribution[text[place + 1]] += score / sum(scores.values()) / heads
        if case.config.keys != "unit":
            # products without bound are squashed
            scale = SCALE * (SHAPE.kv_heads if case.config.retrieval == "joint" else 1)
            products = [math.tanh(each * scale / COPY_SCALE) for each in products]
        features = [
            max(products),
            sum(products) / len(products),
            max(distribution.values()),
            sum(weight * math.log(weight) for weight in distribution.values()),
            max(runs) / max(longest, 1),
        ]
        given = torch.tensor([*case.hidden[token].tolist(), *features], dtype=torch.float64)
        weighted = torch.tensor(features, dtype=torch.float64) @ head.feature_weights
        logits.append(float(head.bias + weighted + head.mlp(given)[0]))
        distributions.append(dict(distribution))
    return distributions, logits


SETTINGS = [
    (form, settings) for form, settings in product(FORMS, ({}, {"copy_match_tokens": 0}, {"copy_match_tokens": 6}))
]


@pytest.mark.parametrize(("form", "settings"), SETTINGS, ids=str)
def test_copies_are_those_of_the_dictionary(
    form: tuple[str, ...], settings: dict[str, int], random_view: RandomView
) -> None:
    case = case_of(random_view, form, **settings)
    copies, (distributions, logits) = case.copies(), naive_copies(case)
    torch.testing.assert_close(copies.share_logits.double(), torch.tensor(logits).double(), rtol=0, atol=1e-4)
    for token, distribution in enumerate(distributions):
        found: dict[int, float] = defaultdict(float)
        for copied, weight in zip(copies.tokens[token].tolist(), copies.weights[token].tolist(), strict=True):
            found[copied] += weight
        for copied in range(VOCABULARY):
            assert found[copied] == pytest.approx(distribution.get(copied, 0.0), abs=TOLERANCE)


def random_logits(tokens: int = 5) -> Tensor:
    return 3 * torch.randn((tokens, VOCABULARY), generator=torch.Generator().manual_seed(11))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_mixture_is_that_of_the_dictionary_and_sums_to_one(form: tuple[str, ...], random_view: RandomView) -> None:
    case = case_of(random_view, form)
    mixed = case.copies().mix_logits(random_logits())
    distributions, logits = naive_copies(case)
    for token, distribution in enumerate(distributions):
        share = 1 / (1 + math.exp(-logits[token]))
        own = random_logits()[token].double().softmax(dim=0).tolist()
        for word in range(VOCABULARY):
            expected = (1 - share) * own[word] + share * distribution.get(word, 0.0)
            assert float(mixed[token, word].exp()) == pytest.approx(expected, abs=TOLERANCE)
    torch.testing.assert_close(mixed.double().exp().sum(dim=1), torch.ones(5).double(), rtol=0, atol=TOLERANCE)


def test_weights_sum_to_one_and_what_is_not_there_has_none(random_view: RandomView) -> None:
    case = case_of(random_view, lengths=[3, 1, 2, 2], top_k=30)
    valid = case.reading.places.valid.flatten(1)
    assert not valid.all()
    weights = case.copies().weights
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(5), rtol=0, atol=1e-6)
    assert not weights[~valid].any()


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("targets", [5, 4])
def test_targets_have_the_probability_that_the_whole_mixture_gives_them(
    form: tuple[str, ...], targets: int, random_view: RandomView
) -> None:
    """The last segment of a document has one target fewer than tokens."""
    copies, logits = case_of(random_view, form).copies(), random_logits()
    wanted = torch.tensor([0, 9, 2, 1, 11])[:targets]
    own = logits.log_softmax(dim=1)[:targets].gather(1, wanted[:, None])[:, 0]
    expected = copies.mix_logits(logits)[:targets].gather(1, wanted[:, None])[:, 0]
    torch.testing.assert_close(copies.mix_targets(own, wanted.int()), expected, rtol=0, atol=1e-5)


def test_the_last_token_alone_is_mixed_like_the_last_of_all(random_view: RandomView) -> None:
    copies, logits = case_of(random_view).copies(), random_logits()
    assert torch.equal(copies.rows(slice(-1, None)).mix_logits(logits[-1:])[0], copies.mix_logits(logits)[-1])


def test_a_piece_of_a_segment_copies_what_the_whole_segment_does(random_view: RandomView) -> None:
    """Where decoding is step by step, the tokens before the piece are known and their hidden states are not needed."""
    case = case_of(random_view, tokens=9, before=0)
    whole = case.copies()
    places = Places(case.reading.places.index[6:], case.reading.places.valid[6:])
    reading = Reading(case.reading.chunk_ids[6:], places, case.reading.products[6:], None)
    piece: Copies = case.head(reading, case.view, case.hidden[6:], case.context)
    assert torch.equal(piece.tokens, whole.tokens[6:])
    torch.testing.assert_close(piece.weights, whole.weights[6:], rtol=0, atol=1e-6)
    torch.testing.assert_close(piece.share, whole.share[6:], rtol=0, atol=1e-6)


def test_the_newest_token_is_followed_by_the_first_of_the_segment(random_view: RandomView) -> None:
    """Its own value can be attended to, so it can be retrieved; what came next is known to every reader."""
    case = case_of(random_view, ("unit", "same", "joint"), lengths=[1])
    assert case.copies().tokens[:, 0].tolist() == [case.context[0]] * 5


# ---- runs and shares


@given(
    text=st.lists(st.integers(0, 2), min_size=2, max_size=25),
    segment=st.integers(1, 10),
    longest=st.integers(0, 6),
    seed=st.integers(0, 1000),
)
def test_runs_are_those_of_the_loop(text: list[int], segment: int, longest: int, seed: int) -> None:
    segment = min(segment, len(text) - 1)
    num_stored = len(text) - segment
    index = torch.randint(num_stored, (segment, 2, 5), generator=torch.Generator().manual_seed(seed))
    readers = num_stored + torch.arange(segment)
    found = _runs(torch.tensor(text), index, readers, longest)
    for token, head, slot in product(range(segment), range(2), range(5)):
        place = int(index[token, head, slot])
        assert found[token, head, slot] == naive_run(text, place, num_stored + token, longest)


def test_a_run_goes_back_from_the_segment_into_the_memory() -> None:
    """The reader is the segment's first token, so three of the four equal tokens before it are the memory's."""
    text = torch.tensor([5, 1, 2, 3, 4, 9, 1, 2, 3, 4])
    for longest in (0, 2, 4, 8):
        runs = _runs(text, torch.tensor([[[4, 3]]]), torch.tensor([9]), longest)
        assert runs.tolist() == [[[min(longest, 4), 0]]]


@given(
    rows=st.lists(st.lists(st.integers(0, 4), min_size=6, max_size=6), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
)
def test_shares_are_those_of_the_loop(rows: list[list[int]], seed: int) -> None:
    tokens = torch.tensor(rows)
    weights = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(seed))
    shares = _shares(tokens, weights)
    for row, copied in enumerate(rows):
        for slot in range(6):
            same = [other for other in range(6) if copied[other] == copied[slot]]
            expected = sum(float(weights[row, other]) for other in same)
            assert float(shares[row, slot]) == pytest.approx(expected, abs=1e-6)


# ---- where it starts


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_share_starts_as_the_fitted_sum_of_features(form: tuple[str, ...], random_view: RandomView) -> None:
    case = case_of(random_view, form, start=True)
    assert case.head.feature_weights.tolist() == pytest.approx(FEATURE_WEIGHTS)
    assert float(case.head.bias) == pytest.approx(FEATURE_BIAS)
    assert float(case.head.age) == pytest.approx(AGE)
    assert case.head.run_bias.tolist() == pytest.approx(RUN_BIAS)
    # a joint product is a mean over the heads that attention would sum up
    start = SCALE * (SHAPE.kv_heads if case.config.retrieval == "joint" else 1)
    assert float(case.head.log_scale.exp()) == pytest.approx(COPY_SCALE if form[0] == "unit" else start)
    # of the hidden state nothing is learned yet
    shares = case.copies().share
    case.hidden = -case.hidden
    assert torch.equal(case.copies().share, shares)
    _, logits = naive_copies(case)
    torch.testing.assert_close(shares.double(), torch.tensor(logits).double().sigmoid(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("best", "equal", "share"),
    [
        # sigmoid(-3.05 + best + 0.25 · mean + 1.9 · largest share + 0.45 · log share + run)
        (1.0, True, 1 / (1 + math.exp(-1.1))),
        (0.0, False, 1 / (1 + math.exp(1.15))),
    ],
)
def test_the_share_of_one_place(best: float, equal: bool, share: float, random_view: RandomView) -> None:
    view = random_view(2, 8, chunk=1, lengths=[1] * 6)
    view.tokens.copy_(torch.arange(6)[:, None])
    places = places_of(torch.tensor([[[3]]]), view, continued=True)
    reading = Reading(torch.tensor([[[3]]]), places, torch.tensor([[[best]]]), None)
    head = CopyHead(HIDDEN, config_of(chunk_tokens=1), SHAPE.kv_heads, SCALE).requires_grad_(False)
    context = torch.tensor([0, 1, 2, 3]) if equal else torch.tensor([9])
    copies: Copies = head(reading, view, torch.zeros((1, HIDDEN)), context)
    assert (copies.tokens.tolist(), copies.weights.tolist()) == ([[4]], [[1.0]])
    assert float(copies.share) == pytest.approx(share, abs=1e-6)


def test_runs_beyond_the_fitted_ones_start_like_the_last() -> None:
    long, blind = (CopyHead(HIDDEN, config_of(copy_match_tokens=n), 2, SCALE).run_bias for n in (7, 0))
    assert long.tolist() == pytest.approx([*RUN_BIAS, *[RUN_BIAS[-1]] * 3])
    assert blind.tolist() == [0.0]


def test_start_weights_are_the_same_in_every_process_and_take_nothing_from_its_random_numbers() -> None:
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        states.append(CopyHead(HIDDEN, config_of(), SHAPE.kv_heads, SCALE).state_dict())
        assert torch.equal(torch.random.get_rng_state(), before)
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert states[0]["mlp.0.weight"].abs().max() > 0.01


# ---- what it looks at


@pytest.mark.parametrize(("longest", "blind"), [(0, True), (4, False)])
def test_without_runs_it_is_blind_to_the_tokens_it_reads(longest: int, blind: bool, random_view: RandomView) -> None:
    case = case_of(random_view, copy_match_tokens=longest)
    before = case.copies()
    case.context = case.context + 50
    after = case.copies()
    same = torch.equal(before.weights, after.weights) and torch.equal(before.share_logits, after.share_logits)
    assert same == blind


def test_no_token_of_the_segment_after_the_reader_is_looked_at(random_view: RandomView) -> None:
    case = case_of(random_view, tokens=6, before=0)
    before = case.copies()
    case.context[4:] = 50
    after = case.copies()
    assert torch.equal(before.weights[:4], after.weights[:4])
    assert torch.equal(before.share[:4], after.share[:4])
    assert not torch.equal(before.weights[4:], after.weights[4:])


def test_it_works_in_float32_whatever_the_model_computes_in(random_view: RandomView) -> None:
    case = case_of(random_view)
    expected = case.copies()
    case.hidden = case.hidden.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = case.copies()
    assert torch.equal(found.weights, expected.weights)
    case.hidden = case.hidden.float()
    assert torch.equal(found.share_logits, case.copies().share_logits)


# ---- gradients


def test_gradients_are_finite_when_nothing_that_was_found_is_the_target(random_view: RandomView) -> None:
    case = case_of(random_view, gradients=True)
    case.hidden.requires_grad_()
    copies = case.copies()
    targets = torch.full((5,), VOCABULARY - 1)
    assert not (copies.tokens == VOCABULARY - 1).any()
    mixed = copies.mix_targets(torch.full((5,), -2.0), targets)
    # then the target has what is left of the model's own probability
    torch.testing.assert_close(mixed, (1 - copies.share).log() - 2.0, rtol=0, atol=1e-5)
    mixed.sum().backward()
    for name, parameter in case.head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert case.hidden.grad is not None
    assert case.hidden.grad.isfinite().all()


def test_gradients_are_the_slopes(random_view: RandomView) -> None:
    case = case_of(random_view, gradients=True)
    targets = torch.tensor([0, 1, 2, 1, VOCABULARY - 1])

    def loss() -> Tensor:
        total: Tensor = -case.copies().mix_targets(torch.full((5,), -2.0), targets).sum()
        return total

    loss().backward()
    step = 0.02
    for name, parameter in case.head.named_parameters():
        if name.startswith("mlp"):
            continue
        grad = parameter.grad
        assert grad is not None, name
        for position in range(parameter.numel()):
            with torch.no_grad():
                flat = parameter.view(-1)
                start, ends = flat[position].item(), []
                for end in (start - step, start + step):
                    flat[position] = end
                    ends.append(loss().item())
                flat[position] = start
            slope = (ends[1] - ends[0]) / (2 * step)
            assert float(grad.view(-1)[position]) == pytest.approx(slope, rel=0.02, abs=1e-3), name


def test_a_memory_with_continuations_only_copies_what_is_searchable(random_view: RandomView) -> None:
    case = case_of(random_view, lengths=[2, 1])
    assert num_searchable(case.view, continued=True) == 1
    assert set(case.reading.chunk_ids.unique().tolist()) == {-1, 0}
    assert case.copies().tokens[:, :2].tolist() == [text_of(case.view)[1:]] * 5
