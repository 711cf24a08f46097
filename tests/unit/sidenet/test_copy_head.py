# SPDX-License-Identifier: Apache-2.0
"""The copy head against a dictionary of copy candidates, one token at a time, in float64."""

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from longmem.backbone.families import AttentionShape
from longmem.config import LongMemConfig
from longmem.memory.view import MemoryView
from longmem.retrieval import create_search
from longmem.retrieval.positions import RetrievedPositions, num_searchable, places_of
from longmem.retrieval.repeats import LENGTHS, LONGEST
from longmem.sidenet import repeat_copies
from longmem.sidenet.copies import Copies, token_shares
from longmem.sidenet.copy_head import AGE, COPY_SCALE, FEATURE_BIAS, FEATURE_WEIGHTS, RUN_BIAS, CopyHead
from longmem.sidenet.readers import MemoryReader, RetrievedMemory
from tests.unit.search.test_repeats import naive_run, naive_slots

RandomView = Callable[..., MemoryView]

SHAPE = AttentionShape(4, 2, 8)
SCALE, HIDDEN, VOCABULARY = 0.3, 6, 12
FORMS = [("unit", "next", "joint"), ("unit", "same", "per_head"), ("centred", "next", "per_head")]
REPEATS = (0, 3)
every_form = pytest.mark.parametrize("form", FORMS, ids=str)
with_and_without_repeats = pytest.mark.parametrize("repeats", REPEATS)
NEW = VOCABULARY - 2
"""Token that does not occur in the memory."""
CONTEXTS = {"all repeat": [], "one is new": [2], "four are new": [0, 1, 2, 3], "all are new": list(range(9))}
"""Indices of the new tokens of the context, counted from its end."""
every_context = pytest.mark.parametrize("new", CONTEXTS.values(), ids=CONTEXTS)
TOLERANCE = 1e-5
"""Tolerance of probabilities: sums of a few dozen float32 products of numbers below 10."""


@dataclass
class Case:
    """Copy head with changed weights everywhere, and its input."""

    head: CopyHead
    reading: RetrievedMemory
    view: MemoryView
    hidden: Tensor
    context: Tensor
    config: LongMemConfig

    def copies(self) -> Copies:
        found: Copies = self.head(self.reading, self.view, self.hidden, self.context)
        return found


def config_of(form: tuple[str, ...] = FORMS[0], **settings: Any) -> LongMemConfig:
    names = dict(zip(("keys", "values", "retrieval"), form, strict=True))
    sizes = {"segment_tokens": 30, "memory_tokens": 300, "chunk_tokens": 3, "top_k": 12, "copy_repeats": 3}
    return LongMemConfig.from_dict(sizes | names | settings)


def moved(module: Any, seed: int = 7) -> Any:
    """Move every weight away from its start, like training."""
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
    quoted: bool = False,
    new: Sequence[int] = (),
    **settings: Any,
) -> Case:
    """Return a case on a text of few letters, so that much of it repeats; `before` tokens were read earlier.

    A `quoted` segment occurs in the memory verbatim, except for the `new` tokens, counted from its end.
    """
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
    context = torch.randint(3, (before + tokens,), generator=random)
    if quoted:
        context = view.text[4 : 4 + len(context)].clone()
    context[[-1 - back for back in new]] = NEW
    return Case(
        (head if start else moved(head)).requires_grad_(gradients),
        reading,
        view,
        torch.randn((tokens, HIDDEN), generator=random),
        context,
        config,
    )


def one_place(random_view: RandomView, retrieved: int, best: float, context: list[int], **settings: Any) -> Case:
    """Return a case with the memory 0 1 2 3 4 5 in chunks of one token, one of which is retrieved."""
    view = random_view(2, 8, chunk=1, lengths=[1] * 6)
    view.tokens.copy_(torch.arange(6)[:, None])
    ids = torch.tensor([[[retrieved]]])
    reading = RetrievedMemory(ids, places_of(ids, view, continued=True), torch.tensor([[[best]]]), None)
    config = config_of(chunk_tokens=1, **settings)
    head = CopyHead(HIDDEN, config, SHAPE.kv_heads, SCALE).requires_grad_(False)
    return Case(head, reading, view, torch.zeros((1, HIDDEN)), torch.tensor(context), config)


def text_of(view: MemoryView) -> list[int]:
    return [token for row, length in zip(view.tokens, view.lengths, strict=True) for token in row[:length].tolist()]


def dot(weights: Tensor, values: list[float]) -> float:
    return float(weights @ torch.tensor(values, dtype=torch.float64))


def naive_certainty(distribution: dict[int, float]) -> list[float]:
    return [max(distribution.values()), sum(weight * math.log(weight) for weight in distribution.values())]


def by_word(places: dict[int, float], text: list[int]) -> dict[int, float]:
    """Return the probability of every token that followed a place."""
    words: dict[int, float] = defaultdict(float)
    for place, weight in places.items():
        words[text[place + 1]] += weight
    return words


def naive_retrieved(case: Case, head: CopyHead, text: list[int], token: int) -> tuple[dict[int, float], list[float]]:
    """Return the probability of every retrieved place, and the features."""
    longest, reader = len(head.run_bias) - 1, len(text) - len(case.hidden) + token
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
            distribution[place] += score / sum(scores.values()) / heads
    if case.config.keys != "unit":
        # unbounded products are squashed
        scale = SCALE * (SHAPE.kv_heads if case.config.retrieval == "joint" else 1)
        products = [math.tanh(each * scale / COPY_SCALE) for each in products]
    similarities = [max(products), sum(products) / len(products)]
    return distribution, [*similarities, *naive_certainty(by_word(distribution, text)), max(runs) / max(longest, 1)]


def naive_repeated(
    case: Case, repeats: Any, text: list[int], found: list[tuple[int, int]], token: int
) -> tuple[dict[int, float], list[float]]:
    """Return the probabilities and features of the repeats, which are pairs of place and run."""
    reader = len(text) - len(case.hidden) + token
    scores = [
        math.exp(float(repeats.run_bias[run]) - float(repeats.age[run]) * math.log(reader - place))
        for place, run in found
    ]
    distribution: dict[int, float] = defaultdict(float)
    for (place, _), score in zip(found, scores, strict=True):
        distribution[place] += score / sum(scores)
    return distribution, [*naive_certainty(by_word(distribution, text)), max(run for _, run in found) / LONGEST]


def naive_copies(case: Case) -> tuple[list[dict[int, float]], list[float]]:
    """Return, for each reading token, the probability of every copied token, and the logit of their share."""
    places, logits = naive_places(case)
    text = text_of(case.view) + case.context.tolist()
    return [by_word(each, text) for each in places], logits


def naive_places(case: Case) -> tuple[list[dict[int, float]], list[float]]:
    """Return, for each reading token, the probability of every place, and the logit of their share."""
    head = copy.deepcopy(case.head).double().requires_grad_(False)
    past, segment = text_of(case.view), case.context.tolist()
    slots = naive_slots(past, segment, len(case.hidden), case.config.copy_repeats)
    distributions, logits = [], []
    for token, hidden in enumerate(case.hidden.tolist()):
        retrieved, features = naive_retrieved(case, head, past + segment, token)
        logit = float(head.bias) + dot(head.feature_weights, features)
        logit += float(head.mlp(torch.tensor([*hidden, *features]).double()))
        repeated: dict[int, float] = {}
        # shares of retrieved and repeats, as multiples of the model's own
        odds = [math.exp(logit), 0.0]
        if found := [pair for length in slots[token] for pair in length if pair]:
            repeats: Any = head.repeats
            repeated, own = naive_repeated(case, repeats, past + segment, found, token)
            both = features + own
            second = float(repeats.bias) + dot(repeats.weights, both)
            second += float(repeats.mlp(torch.tensor([*hidden, *both]).double()))
            odds = [math.exp(logit + dot(repeats.retrieved_weights, own)), math.exp(second)]
        distributions.append(
            {
                place: (odds[0] * retrieved.get(place, 0.0) + odds[1] * repeated.get(place, 0.0)) / sum(odds)
                for place in retrieved.keys() | repeated.keys()
            }
        )
        logits.append(math.log(sum(odds)))
    return distributions, logits


@every_form
@with_and_without_repeats
@pytest.mark.parametrize("match", [0, 4, 6])
@pytest.mark.parametrize("quoted", [False, True])
def test_copies_are_those_of_the_dictionary(
    form: tuple[str, ...], repeats: int, match: int, quoted: bool, random_view: RandomView
) -> None:
    case = case_of(random_view, form, before=12, quoted=quoted, copy_match_tokens=match, copy_repeats=repeats)
    check_against_dictionary(case)


@with_and_without_repeats
@every_context
def test_copies_of_what_repeats_nowhere_are_those_of_the_dictionary(
    new: list[int], repeats: int, random_view: RandomView
) -> None:
    case = case_of(random_view, quoted=True, new=new, copy_repeats=repeats)
    check_against_dictionary(case)


def check_against_dictionary(case: Case) -> None:
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


@every_form
@with_and_without_repeats
def test_the_mixture_is_that_of_the_dictionary_and_sums_to_one(
    form: tuple[str, ...], repeats: int, random_view: RandomView
) -> None:
    case = case_of(random_view, form, copy_repeats=repeats)
    mixed = case.copies().mix_logits(random_logits())
    distributions, logits = naive_copies(case)
    for token, distribution in enumerate(distributions):
        share = 1 / (1 + math.exp(-logits[token]))
        own = random_logits()[token].double().softmax(dim=0).tolist()
        for word in range(VOCABULARY):
            expected = (1 - share) * own[word] + share * distribution.get(word, 0.0)
            assert float(mixed[token, word].exp()) == pytest.approx(expected, abs=TOLERANCE)
    torch.testing.assert_close(mixed.double().exp().sum(dim=1), torch.ones(5).double(), rtol=0, atol=TOLERANCE)


@with_and_without_repeats
def test_weights_sum_to_one_and_what_is_not_there_has_none(repeats: int, random_view: RandomView) -> None:
    case = case_of(random_view, lengths=[3, 1, 2, 2], top_k=30, copy_repeats=repeats)
    copies, valid = case.copies(), case.reading.places.valid.flatten(1)
    assert not valid.all()
    assert (copies.repeated is None) == (repeats == 0)
    if copies.repeated is not None:
        assert copies.repeated.valid.any()
        assert not copies.repeated.valid.all()
        valid = torch.cat([valid, copies.repeated.valid], dim=1)
    torch.testing.assert_close(copies.weights.sum(dim=1), torch.ones(5), rtol=0, atol=1e-6)
    assert not copies.weights[~valid].any()
    assert (copies.weights[valid] > 0).all()


@every_form
@with_and_without_repeats
@pytest.mark.parametrize("targets", [5, 4])
def test_targets_have_the_probability_that_the_whole_mixture_gives_them(
    form: tuple[str, ...], repeats: int, targets: int, random_view: RandomView
) -> None:
    """Check the last segment of a document, which has one target fewer than tokens."""
    copies, logits = case_of(random_view, form, copy_repeats=repeats).copies(), random_logits()
    wanted = torch.tensor([0, 9, 2, 1, 11])[:targets]
    own = logits.log_softmax(dim=1)[:targets].gather(1, wanted[:, None])[:, 0]
    expected = copies.mix_logits(logits)[:targets].gather(1, wanted[:, None])[:, 0]
    torch.testing.assert_close(copies.mix_targets(own, wanted.int()), expected, rtol=0, atol=1e-5)


@with_and_without_repeats
def test_the_last_token_alone_is_mixed_like_the_last_of_all(repeats: int, random_view: RandomView) -> None:
    copies, logits = case_of(random_view, copy_repeats=repeats).copies(), random_logits()
    assert torch.equal(copies.rows(slice(-1, None)).mix_logits(logits[-1:])[0], copies.mix_logits(logits)[-1])


def test_rows_of_copies_keep_where_their_repeats_stand(random_view: RandomView) -> None:
    copies = case_of(random_view).copies()
    rows = copies.rows(slice(1, 4))
    assert copies.repeated is not None
    assert rows.repeated is not None
    for name, part in vars(rows.repeated).items():
        assert torch.equal(part, getattr(copies.repeated, name)[1:4]), name


@with_and_without_repeats
def test_a_piece_of_a_segment_copies_what_the_whole_segment_does(repeats: int, random_view: RandomView) -> None:
    """Check step-by-step decoding: tokens before the piece are known, and their hidden states are not needed."""
    case = case_of(random_view, tokens=9, before=0, copy_repeats=repeats)
    whole = case.copies()
    places = RetrievedPositions(case.reading.places.index[6:], case.reading.places.valid[6:])
    reading = RetrievedMemory(case.reading.chunk_ids[6:], places, case.reading.products[6:], None)
    check_equal(case.head(reading, case.view, case.hidden[6:], case.context), whole.rows(slice(6, None)))


@with_and_without_repeats
@pytest.mark.parametrize("rows", [slice(1, 3), torch.tensor([4, 0, 2])], ids=str)
def test_what_was_found_is_weighed_row_by_row(rows: slice | Tensor, repeats: int, random_view: RandomView) -> None:
    """Check row subsets, as used when the weights are fitted to a sample of tokens."""
    case = case_of(random_view, copy_repeats=repeats)
    found, whole = case.head.find(case.reading, case.view, 5, case.context), case.copies()
    some: Copies = case.head.weigh(found.rows(rows), case.hidden[rows])
    check_equal(some, Copies(whole.tokens[rows], whole.weights[rows], whole.share_logits[rows], None))


def check_equal(copies: Copies, expected: Copies) -> None:
    assert torch.equal(copies.tokens, expected.tokens)
    torch.testing.assert_close(copies.weights, expected.weights, rtol=0, atol=1e-6)
    torch.testing.assert_close(copies.share, expected.share, rtol=0, atol=1e-6)


def test_the_newest_token_is_followed_by_the_first_of_the_segment(random_view: RandomView) -> None:
    """Check the newest stored token: its value can be retrieved, and its continuation is known to every reader."""
    case = case_of(random_view, ("unit", "same", "joint"), lengths=[1])
    assert case.copies().tokens[:, 0].tolist() == [case.context[0]] * 5


# ---- shares of a token


@given(
    rows=st.lists(st.lists(st.integers(0, 4), min_size=6, max_size=6), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
)
def test_shares_are_those_of_the_loop(rows: list[list[int]], seed: int) -> None:
    tokens = torch.tensor(rows)
    weights = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(seed))
    shares = token_shares(tokens, weights)
    for row, copied in enumerate(rows):
        for slot in range(6):
            same = [other for other in range(6) if copied[other] == copied[slot]]
            expected = sum(float(weights[row, other]) for other in same)
            assert float(shares[row, slot]) == pytest.approx(expected, abs=1e-6)


# ---- initial values


@every_form
@with_and_without_repeats
def test_the_share_starts_as_the_fitted_sum_of_features(
    form: tuple[str, ...], repeats: int, random_view: RandomView
) -> None:
    case = case_of(random_view, form, start=True, copy_repeats=repeats)
    assert case.head.feature_weights.tolist() == pytest.approx(FEATURE_WEIGHTS)
    assert float(case.head.bias) == pytest.approx(FEATURE_BIAS)
    assert float(case.head.age) == pytest.approx(AGE)
    assert case.head.run_bias.tolist() == pytest.approx(RUN_BIAS)
    # a joint product is a mean over the heads that attention would sum up
    start = SCALE * (SHAPE.kv_heads if case.config.retrieval == "joint" else 1)
    assert float(case.head.log_scale.exp()) == pytest.approx(COPY_SCALE if form[0] == "unit" else start)
    # untrained weights of the hidden state are zero
    copies = case.copies()
    case.hidden = -case.hidden
    assert torch.equal(case.copies().share, copies.share)
    assert torch.equal(case.copies().weights, copies.weights)
    check_against_dictionary(case)


def test_the_weights_of_repeats_start_as_they_were_fitted() -> None:
    repeats = CopyHead(HIDDEN, config_of(), SHAPE.kv_heads, SCALE).requires_grad_(False).repeats
    assert repeats is not None
    first, step = repeat_copies.RUN_BIAS
    assert repeats.run_bias.tolist() == pytest.approx([first + step * run for run in range(LONGEST + 1)], abs=1e-6)
    one, more = repeat_copies.AGE
    assert repeats.age.tolist()[1:] == pytest.approx([one, *[more] * (LONGEST - 1)])
    assert repeats.weights.tolist() == pytest.approx(repeat_copies.WEIGHTS)
    assert float(repeats.bias) == pytest.approx(repeat_copies.BIAS)
    assert not repeats.retrieved_weights.any()
    assert CopyHead(HIDDEN, config_of(copy_repeats=0), SHAPE.kv_heads, SCALE).repeats is None


@pytest.mark.parametrize(
    ("best", "equal", "share"),
    [
        # sigmoid(-3.05 + best + 0.25 · mean + 1.9 · largest share + 0.45 · log share + run)
        (1.0, True, 1 / (1 + math.exp(-1.1))),
        (0.0, False, 1 / (1 + math.exp(1.15))),
    ],
)
def test_the_share_of_one_place(best: float, equal: bool, share: float, random_view: RandomView) -> None:
    copies = one_place(random_view, 3, best, [0, 1, 2, 3] if equal else [9], copy_repeats=0).copies()
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
    for name in ("mlp.0.weight", "repeats.mlp.0.weight"):
        assert states[0][name].abs().max() > 0.01


def test_what_is_retrieved_starts_the_same_with_and_without_repeats() -> None:
    without, with_repeats = (
        CopyHead(HIDDEN, config_of(copy_repeats=repeats), SHAPE.kv_heads, SCALE).state_dict() for repeats in REPEATS
    )
    assert without.keys() == {name for name in with_repeats if not name.startswith("repeats.")}
    assert all(torch.equal(weight, with_repeats[name]) for name, weight in without.items())


# ---- inputs


@pytest.mark.parametrize(("longest", "repeats", "blind"), [(0, 0, True), (4, 0, False), (0, 3, False)])
def test_without_runs_and_repeats_it_is_blind_to_the_tokens_it_reads(
    longest: int, repeats: int, blind: bool, random_view: RandomView
) -> None:
    case = case_of(random_view, copy_match_tokens=longest, copy_repeats=repeats)
    before = case.copies()
    case.context = case.context + 50
    after = case.copies()
    same = torch.equal(before.weights, after.weights) and torch.equal(before.share_logits, after.share_logits)
    assert same == blind


@with_and_without_repeats
def test_no_token_of_the_segment_after_the_reader_is_looked_at(repeats: int, random_view: RandomView) -> None:
    case = case_of(random_view, tokens=6, before=0, copy_repeats=repeats)
    before = case.copies()
    case.context[4:] = 50
    after = case.copies()
    assert torch.equal(before.weights[:4], after.weights[:4])
    assert torch.equal(before.share[:4], after.share[:4])
    assert not torch.equal(before.weights[4:], after.weights[4:])


@with_and_without_repeats
def test_it_works_in_float32_whatever_the_model_computes_in(repeats: int, random_view: RandomView) -> None:
    case = case_of(random_view, copy_repeats=repeats)
    case.hidden = case.hidden.bfloat16().float()
    expected = case.copies()
    case.hidden = case.hidden.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = case.copies()
    assert torch.equal(found.weights, expected.weights)
    assert torch.equal(found.share_logits, expected.share_logits)


# ---- repeats


def test_the_share_of_one_repeat(random_view: RandomView) -> None:
    """Check the place of `test_the_share_of_one_place`, found both ways."""
    copies = one_place(random_view, 3, 1.0, [0, 1, 2, 3], copy_repeats=1).copies()
    # -5.2 + 0.9 · best + 2 · mean - 0.35 · largest share + run + 1.6 · largest share + 5 · 4 / 16
    odds = math.exp(1.1), math.exp(1.2)
    assert float(copies.share) == pytest.approx(sum(odds) / (1 + sum(odds)), abs=1e-6)
    assert copies.weights[0].tolist() == pytest.approx([odds[0] / sum(odds), 0, 0, odds[1] / sum(odds), 0], abs=1e-6)
    assert copies.tokens[0, [0, 3]].tolist() == [4, 4]
    assert copies.repeated is not None
    assert copies.repeated.valid.tolist() == [[length == 4 for length in LENGTHS]]


@pytest.mark.parametrize(("bias", "answer"), [(20.0, 3), (-20.0, 5)])
def test_repeats_give_the_answer_that_keys_do_not_find(bias: float, answer: int, random_view: RandomView) -> None:
    """Check 0 1 2 followed by 3, where retrieved places are followed by 5."""
    case = one_place(random_view, 4, 0.9, [0, 1, 2])
    assert case.head.repeats is not None
    case.head.repeats.bias.fill_(bias)
    copies = case.copies()
    copied = copies.weights[copies.tokens == answer].sum()
    assert float(copied) > 0.999
    if answer == 3:
        assert copies.mix_logits(torch.zeros((1, VOCABULARY)))[0].exp()[3] > 0.999


def test_where_nothing_repeats_it_copies_what_it_would_without_repeats(random_view: RandomView) -> None:
    case = case_of(random_view, new=CONTEXTS["all are new"])
    without = CopyHead(HIDDEN, config_of(copy_repeats=0), SHAPE.kv_heads, SCALE).requires_grad_(False)
    without.load_state_dict({name: case.head.state_dict()[name] for name in without.state_dict()})
    copies = case.copies()
    assert copies.repeated is not None
    assert not copies.repeated.valid.any()
    case.head = without
    assert torch.equal(copies.share_logits, case.copies().share_logits)
    assert torch.equal(copies.mix_logits(random_logits()), case.copies().mix_logits(random_logits()))


def test_found_places_have_their_next_token_run_and_distance(random_view: RandomView) -> None:
    case = case_of(random_view, before=12, quoted=True)
    text = text_of(case.view) + case.context.tolist()
    found = case.head.find(case.reading, case.view, 5, case.context)
    assert found.repeated is not None
    for candidates, longest in ((found.retrieved, 4), (found.repeated, LONGEST)):
        assert candidates.valid.any()
        for at in candidates.valid.nonzero().unbind():
            row, place = int(at[0]), int(candidates.index[tuple(at)])
            reader = len(text) - 5 + row
            assert int(candidates.tokens[tuple(at)]) == text[place + 1]
            assert int(candidates.runs[tuple(at)]) == naive_run(text, place, reader, longest)
            assert float(candidates.log_distances[tuple(at)]) == pytest.approx(math.log(reader - place), abs=1e-6)


# ---- gradients


@with_and_without_repeats
@every_context
def test_gradients_are_finite_when_nothing_that_was_found_is_the_target(
    new: list[int], repeats: int, random_view: RandomView
) -> None:
    case = case_of(random_view, gradients=True, new=new, copy_repeats=repeats)
    case.hidden.requires_grad_()
    copies = case.copies()
    targets = torch.full((5,), VOCABULARY - 1)
    assert not (copies.tokens == VOCABULARY - 1).any()
    mixed = copies.mix_targets(torch.full((5,), -2.0), targets)
    # then the target has the remaining share of the model's own probability
    torch.testing.assert_close(mixed, (1 - copies.share).log() - 2.0, rtol=0, atol=1e-5)
    mixed.sum().backward()
    for name, parameter in case.head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert case.hidden.grad is not None
    assert case.hidden.grad.isfinite().all()


@with_and_without_repeats
@every_context
def test_gradients_are_the_slopes(new: list[int], repeats: int, random_view: RandomView) -> None:
    case = case_of(random_view, gradients=True, quoted=True, new=new, copy_repeats=repeats)
    targets = torch.tensor([0, 1, 2, 1, VOCABULARY - 1])

    def loss() -> Tensor:
        total: Tensor = -case.copies().mix_targets(torch.full((5,), -2.0), targets).sum()
        return total

    loss().backward()
    step = 0.02
    for name, parameter in case.head.named_parameters():
        if "mlp" in name:
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
