"""python -m pytest tests/models/test_decoding.py"""

import math
import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.models.decoding import Chooser, IncrementalText, Sampling, choose, narrowed
from foreword.models.hf.tiny_checkpoints import byte_tokenizer
from foreword.models.load import load
from tests.seeds import new_seed

TOKENIZER = byte_tokenizer("causal")


def ids_of(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


@settings(deadline=None, max_examples=200)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30), st.data())
def test_text_comes_out_whole_and_only_once_it_is_sure(text, data):
    """Whatever the characters' bytes and the stop words: what is handed on adds up to what stands before the first."""
    ids = ids_of(text)
    whole = TOKENIZER.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    start = data.draw(st.integers(0, len(whole) - 1)) if whole else 0
    stop = tuple(w for w in (whole[start : start + data.draw(st.integers(1, 4))],) if data.draw(st.booleans()) and w)
    writer, ready, stopped = IncrementalText(TOKENIZER, [], stop), [], False
    for id in ids:
        _, text_now, stopped = writer.add(id)
        ready.append(text_now)
        if stopped:
            break
    if not stopped:
        ready.append(writer.end())
    wanted = whole
    for word in stop:
        wanted = wanted.partition(word)[0]
    assert "".join(ready) == writer.text == wanted
    assert stopped == any(word in whole for word in stop)


def test_what_may_begin_a_stop_word_is_held_back_and_let_go():
    writer = IncrementalText(TOKENIZER, [], ("abc", "xx"))
    assert [writer.add(i)[1] for i in ids_of("-ab-abx")] == ["-", "", "", "ab-", "", "", "ab"]
    assert writer.end() == "x"
    assert writer.text == "-ab-abx"


class _Joined:
    """A tokenizer whose ids are those of texts."""

    def __init__(self, texts):
        self.texts = texts

    def decode(self, ids, **_):
        return "".join(self.texts[i] for i in ids)


def released(pieces: list[str], stop: tuple[str, ...]) -> tuple[list[str], bool]:
    """What is ready with each piece, by trying every beginning of every stop string."""
    held, ready = "", []
    for piece in pieces:
        held += piece
        ends = [at for word in stop if (at := held.find(word)) >= 0]
        if ends:
            return [*ready, held[: min(ends)]], True
        keep = max((n for word in stop for n in range(1, len(word)) if held.endswith(word[:n])), default=0)
        ready.append(held[: len(held) - keep])
        held = held[len(held) - keep :]
    return [*ready, held], False


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=9), max_size=4),
)
def test_stop_strings_are_found_as_by_trying_all(pieces, stop):
    writer, ready, stopped = IncrementalText(_Joined(pieces), [], tuple(stop)), [], False
    for id in range(len(pieces)):
        ready.append(writer.add(id)[1])
        _, stopped = released(pieces[: len(ready)], tuple(stop))
        if stopped:
            break
    if not stopped:
        ready.append(writer.end())
    assert (ready, stopped) == released(pieces, tuple(stop))


def test_the_length_of_a_stop_string_costs_nothing():
    """Steps are counted, not seconds: what is looked at of a stop string is as much as the text can have matched."""

    class Counted(str):
        looked = 0

        def __getitem__(self, at):
            Counted.looked += 1
            return super().__getitem__(at)

    word = Counted("q" * 10**6)
    writer = IncrementalText(_Joined(["qqq", "x"]), [], (word,))
    for _ in range(1000):
        assert writer.add(0)[1] == ""
    assert writer.add(1)[1] == "q" * 3000 + "x"
    assert Counted.looked < 20 * 3001


def test_pieces_of_words_are_joined_as_the_tokenizer_joins_them():
    """WordPiece's `##` and the space between words depend on what stands before."""
    tokenizer = load("foreword-mini").tokenizer
    ids = tokenizer("unbelievably playful gatherings, honestly", add_special_tokens=False)["input_ids"]
    for cut in range(1, len(ids)):
        writer = IncrementalText(tokenizer, ids[:cut])
        added = "".join(writer.add(i)[1] for i in ids[cut:]) + writer.end()
        before, whole = (tokenizer.decode(part, clean_up_tokenization_spaces=False) for part in (ids[:cut], ids))
        assert before + added == whole


def brute(logits: list[float], sampling: Sampling) -> list[float]:
    """Probabilities by the definitions, with Python's own arithmetic."""
    scaled = [x / sampling.temperature for x in logits]
    order = sorted(range(len(scaled)), key=lambda i: -scaled[i])
    kept = order[: sampling.top_k or None]
    weight = {i: math.exp(scaled[i]) for i in kept}
    total = sum(weight.values())
    nucleus, mass = [], 0.0
    for i in kept:
        nucleus.append(i)
        mass += weight[i] / total
        if mass >= sampling.top_p:
            break
    total = sum(weight[i] for i in nucleus)
    return [weight[i] / total if i in nucleus else 0.0 for i in range(len(scaled))]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0), Sampling(temperature=0.5), Sampling(temperature=1.7, top_k=4),
        Sampling(temperature=1.0, top_p=0.7), Sampling(temperature=1.3, top_k=5, top_p=0.8),
    ],
)  # fmt: skip
def test_draws_follow_the_law(sampling):
    """Chi-square of 6,000 draws against probabilities worked out by hand, and none of what has none."""
    rng = random.Random(7)
    logits = [rng.gauss(0, 1.5) for _ in range(9)]
    wanted = brute(logits, sampling)
    rows = [Chooser.of(Sampling(**{**vars(sampling), "seed": s})) for s in range(6000)]
    drawn = Counter(choose(torch.tensor([logits]).expand(6000, -1).clone(), rows).tolist())
    assert all(wanted[i] > 0 for i in drawn)
    free = [i for i, p in enumerate(wanted) if p > 0]
    square = sum((drawn[i] - 6000 * wanted[i]) ** 2 / (6000 * wanted[i]) for i in free)
    assert square < 35  # 8 degrees of freedom at most: 1 in 30,000
    flat = sum((drawn[i] - 6000 / len(free)) ** 2 / (6000 / len(free)) for i in free)
    assert flat > 100  # the statistic tells another law


def test_a_row_draws_the_same_whoever_shares_its_batch():
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(3))
    mixed = [Sampling(seed=11), Sampling(temperature=0.0), Sampling(seed=12, top_p=0.6), Sampling(seed=13, top_k=3)]
    together = [Chooser.of(s) for s in mixed]
    alone = [Chooser.of(s) for s in mixed]
    for _ in range(6):
        logits = logits.roll(1, 0)
        found = choose(logits[:4], together).tolist()
        assert found == [choose(logits[i : i + 1], [alone[i]]).item() for i in range(4)]
    assert found[1] == int(logits[1].argmax())


@pytest.mark.parametrize("kind", ["spread", "equal", "barred", "far"])
def test_what_is_left_is_what_sorting_the_whole_vocabulary_leaves(kind):
    rng = random.Random(seed := new_seed())
    torch.manual_seed(seed)
    for _ in range(40):
        logits = torch.randn(rng.choice([1, 2, 17, 4000])) * rng.choice([0.01, 1.0, 6.0])
        if kind == "equal":  # many tokens share each of seven logits
            logits = torch.randint(7, logits.shape).float() * 0.7
        elif kind == "barred":
            logits[1:][torch.rand(len(logits) - 1) < 0.4] = -torch.inf
        elif kind == "far":
            logits *= 60
        top_k, top_p = rng.choice([0, 1, 3, 40]), rng.choice([1e-9, rng.random() + 1e-6, 0.9137, 1 - 1e-12])
        left = narrowed(logits, Sampling(top_k=top_k, top_p=top_p)).isfinite()
        kept = logits.double()
        if 0 < top_k < len(kept):
            kept = kept.masked_fill(kept < kept.sort(descending=True).values[top_k - 1], -torch.inf)
        share = kept.softmax(-1)
        order = kept.argsort(descending=True, stable=True)
        before = share[order].cumsum(-1) - share[order]
        near = (before - top_p).abs() < 1e-9  # rounding may decide either way
        wanted = torch.zeros(len(kept), dtype=torch.bool)
        wanted[order] = before < top_p
        wanted &= kept.isfinite()
        sure = torch.ones(len(kept), dtype=torch.bool)
        sure[order[near]] = False
        assert torch.equal(left[sure], wanted[sure]), (seed, kind, top_k, top_p)
        assert left.any()


def test_cold_is_greedy_and_the_nucleus_is_never_empty():
    logits = torch.tensor([[0.0, 3.0, 2.9]])
    assert choose(logits, [Chooser.of(Sampling(temperature=1e-9, seed=0))]).item() == 1
    assert narrowed(logits[0], Sampling(top_p=1e-9)).isfinite().tolist() == [False, True, False]
