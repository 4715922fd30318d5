"""Label scores against one word at a time through the plain model. Run: python -m pytest tests/models/test_score.py"""

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from foreword.core.format import Format
from foreword.core.prompts import Bank, SoftPrompt, stack
from foreword.core.template import Template
from foreword.errors import ConfigError, ModelError
from foreword.models.base import FrozenLM
from foreword.models.encoding.encoder import Encoder, PlainRow
from foreword.models.load import wrap
from foreword.models.score import score, score_all
from tests.models import trained

TEXTS = ["a fine film with great actors", "the plot was dull", "is this about sports? the team won the last game"]
# labels of several words of several pieces, some the beginning of others
LABELS = ("cities", "moods", "short")
WORDS = (("new york", "newark", "new"), ("not good", "not bad", "dull"), ("a", "music and plot"))
SINGLE = (("good",), ("bad",), ("a",))
SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 130,
    "initializer_range": 0.3,
}


def _model(name: str, size: int, pad: int | None) -> Any:
    torch.manual_seed(1)
    if name == "bert":
        return BertForMaskedLM(BertConfig(vocab_size=size, **SIZES))
    if name == "roberta":
        return RobertaForMaskedLM(RobertaConfig(vocab_size=size, pad_token_id=pad, **SIZES))
    if name == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=24, n_layer=2, n_head=2, initializer_range=0.3))
    return LlamaForCausalLM(LlamaConfig(vocab_size=size, num_key_value_heads=1, **SIZES))


FAMILIES = {
    "bert": ("masked", trained.wordpiece),
    "roberta": ("masked", trained.masked_byte_bpe),
    "xlmr": ("masked", trained.unigram),
    "gpt2": ("causal", trained.byte_bpe),
    "llama": ("causal", trained.first_space_bpe),
    "llama-unigram": ("causal", trained.unigram),
}
SOURCE = {"masked": "{text} it was {mask}, yes.", "causal": "{text}, it was {answer}"}


def made(name: str) -> tuple[FrozenLM, Any]:
    """The frozen model and the plain one under it, in fp64."""
    kind, tokenizer = FAMILIES[name][0], FAMILIES[name][1]()
    family = {"xlmr": "roberta", "llama-unigram": "llama"}.get(name, name)
    plain = _model(family, len(tokenizer), tokenizer.pad_token_id).double().eval()
    return wrap(plain, tokenizer, kind), plain


def encoded(lm: FrozenLM, texts=TEXTS, words=WORDS, source: str | None = None, **options):
    format = Format(Template.parse(source or SOURCE[lm.kind]), LABELS[: len(words)], words, **options)
    return Encoder.build(lm, format).encode_rows([PlainRow({"text": text}) for text in texts])


def tasks(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers)


@torch.no_grad()
def brute_force(lm: FrozenLM, plain: Any, text: str, word: str, pieces: str) -> float:
    """One word of one row: the library's tokenizer, the library's model, one position after the other."""
    tokenizer = lm.tokenizer
    if lm.kind == "causal":
        whole = tokenizer(f"{text}, it was {word}")["input_ids"]
        start = tokenizer(f"{text}, it was")["input_ids"]
        if whole[-1] == tokenizer.eos_token_id:
            whole, start = whole[:-1], start[:-1]
        assert whole[: len(start)] == start
        logp = plain(torch.tensor([whole])).logits[0].log_softmax(-1)
        return sum(float(logp[t - 1, whole[t]]) for t in range(len(start), len(whole)))
    ids = tokenizer(f"{text} it was {tokenizer.mask_token}, yes.")["input_ids"]
    at = ids.index(tokenizer.mask_token_id)
    before = tokenizer(f"{text} it was", add_special_tokens=False)["input_ids"]
    own = tokenizer(f"{text} it was {word}", add_special_tokens=False)["input_ids"][len(before) :]
    masked = [*ids[:at], *[tokenizer.mask_token_id] * len(own), *ids[at + 1 :]]
    logp = plain(torch.tensor([masked])).logits[0].log_softmax(-1)
    total = sum(float(logp[at + j, piece]) for j, piece in enumerate(own))
    return total / len(own) if pieces == "mean" else total


@pytest.mark.parametrize("pieces", ["mean", "sum"])
@pytest.mark.parametrize("name", FAMILIES)
def test_scores_are_the_brute_force(name, pieces):
    lm, plain = made(name)
    found = score(lm, encoded(lm, pieces=pieces), None, tasks(0, 0, 0))
    wanted = torch.tensor(
        [
            [math.log(sum(math.exp(brute_force(lm, plain, text, w, pieces)) for w in label)) for label in WORDS]
            for text in TEXTS
        ]
    )
    torch.testing.assert_close(found.float(), wanted, atol=2e-5, rtol=2e-5)
    # the control: the first word alone does not pass for its label
    first = torch.tensor([[brute_force(lm, plain, text, label[0], pieces) for label in WORDS] for text in TEXTS])
    assert (found - first).abs().max() > 1e-2


@pytest.mark.parametrize("name", FAMILIES)
def test_words_that_begin_alike_differ(name):
    lm, _ = made(name)
    found = score(lm, encoded(lm, words=(("not good",), ("not bad",))), None, tasks(0, 0, 0))
    assert (found[:, 0] - found[:, 1]).abs().min() > 1e-3


def delegate(name: str) -> Any:
    return lambda self, *args, **options: getattr(self.inner, name)(*args, **options)


_Around: Any = type("_Around", (FrozenLM,), {name: delegate(name) for name in FrozenLM.__abstractmethods__})


class Watched(_Around):
    """A model that counts what it is asked; `fits` overrides the trie, `most` rows fit its memory."""

    def __init__(self, inner: FrozenLM, fits: bool = True, most: int = 10_000):
        self.inner, self.fits, self.most = inner, fits, most
        self.rows: list[int] = []
        self.normalised = 0
        for name in ("name", "kind", "dims", "tokenizer", "device", "dtype"):
            setattr(self, name, getattr(inner, name))

    def trie_fits(self, length: int) -> bool:
        return self.fits and self.inner.trie_fits(length)

    def hidden_at(self, inputs, prefix=None):
        self.rows.append(len(inputs.embed_BSD))
        if self.rows[-1] > self.most:
            raise torch.OutOfMemoryError("no memory for that")
        return self.inner.hidden_at(inputs, prefix)

    def log_normaliser(self, hidden_XD):
        self.normalised += len(hidden_XD)
        return self.inner.log_normaliser(hidden_XD)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_trie_equals_a_row_for_each_word(name):
    lm, _ = made(name)
    trie, rows = Watched(lm), Watched(lm, fits=False)
    one = score(trie, encoded(lm), None, tasks(0, 0, 0))
    other = score(rows, encoded(lm), None, tasks(0, 0, 0))
    torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    assert trie.rows == [3]
    assert rows.rows[0] > 3


@pytest.mark.parametrize("name", FAMILIES)
def test_one_piece_each_needs_label_rows_only(name):
    lm, plain = made(name)
    known = lm.tokenizer.get_vocab()
    letters = [
        p for p in known if len(p.strip("Ġ▁")) == 1 and p.strip("Ġ▁").isalpha() and (p[0] in "Ġ▁" or name == "bert")
    ]
    words = tuple((p.strip("Ġ▁"),) for p in sorted(letters)[:3])
    assert len(words) == 3
    watched = Watched(lm)
    rows = encoded(lm, words=words)
    assert rows[0].plan is not None
    assert rows[0].plan.single
    found = score(watched, rows, None, tasks(0, 0, 0)).softmax(-1)
    assert watched.normalised == 0
    wanted = torch.tensor([[brute_force(lm, plain, text, w, "sum") for (w,) in words] for text in TEXTS]).softmax(-1)
    torch.testing.assert_close(found.float(), wanted, atol=1e-5, rtol=1e-5)
    score(watched, encoded(lm), None, tasks(0, 0, 0))
    assert watched.normalised > 0


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_rows_with_their_own_options(name):
    """A batch of rows with 2, 3 and 4 options is the rows alone; labels that a row lacks are -inf and give no NaN."""
    lm, _ = made(name)
    options = [("good", "bad"), ("new york", "newark", "music and plot"), ("a", "dull", "not good", "new york")]
    encoder = Encoder.build(lm, Format(Template.parse("{soft:2}" + SOURCE[lm.kind])))
    rows = encoder.encode_rows([PlainRow({"text": t}, o) for t, o in zip(TEXTS, options, strict=True)])
    rows += encoded(lm, texts=TEXTS[:1], words=WORDS, source="{soft:2}" + SOURCE[lm.kind])
    prompt = torch.randn(2, 24, dtype=torch.float64, requires_grad=True)
    bank = stack([SoftPrompt(prompt)], lm.embed)
    found = score(lm, rows, bank, tasks(0, 0, 0, 0))
    assert found.shape == (4, 4)
    for b, row in enumerate(rows):
        alone = score(lm, [row], bank, tasks(0))[0]
        torch.testing.assert_close(found[b, : len(alone)], alone, atol=1e-6, rtol=0)
        assert (found[b, len(alone) :] == -torch.inf).all()
    torch.nn.functional.cross_entropy(found, torch.tensor([1, 2, 3, 0])).backward()
    assert torch.isfinite(prompt.grad).all()
    assert prompt.grad.abs().max() > 0


def mixed_bank(lm: FrozenLM, ids: torch.Tensor) -> Bank:
    """Words as a soft prompt, and (task 1) the same words as a prefix; task 2 is another soft prompt."""
    soft = SoftPrompt(lm.embed(ids[None])[0].detach())
    other = SoftPrompt(lm.embed(ids.flip(0)[None])[0].detach())
    return stack([soft, lm.prefix_from_words(ids), other], lm.embed)


def test_prompts_of_mixed_forms_in_one_batch():
    """Slots filled with words' embeddings, and their prefix, score as the words themselves do in the plain model."""
    lm, plain = made("gpt2")
    ids = torch.tensor(lm.tokenizer("not good: ")["input_ids"])
    soft = f"{{soft:{len(ids)}}}" + SOURCE["causal"]
    rows = [*encoded(lm, source=soft), *encoded(lm), *encoded(lm, source=soft)]
    found = score(lm, rows, mixed_bank(lm, ids), tasks(0, 0, 0, 1, 1, 1, 2, 2, 2))

    def with_words(words: torch.Tensor, text: str, word: str) -> float:
        start = [*words.tolist(), *lm.tokenizer(f"{text}, it was")["input_ids"]]
        whole = [*words.tolist(), *lm.tokenizer(f"{text}, it was {word}")["input_ids"]]
        with torch.no_grad():
            logp = plain(torch.tensor([whole])).logits[0].log_softmax(-1)
        return sum(float(logp[t - 1, whole[t]]) for t in range(len(start), len(whole)))

    def labels(words: torch.Tensor) -> torch.Tensor:
        return torch.tensor(
            [[math.log(sum(math.exp(with_words(words, t, w)) for w in ws)) for ws in WORDS] for t in TEXTS]
        )

    torch.testing.assert_close(found[:3].float(), labels(ids), atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(found[3:6], found[:3], atol=1e-8, rtol=0)
    torch.testing.assert_close(found[6:].float(), labels(ids.flip(0)), atol=2e-5, rtol=2e-5)
    assert (found[6:] - found[:3]).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_gradient_of_a_batch_is_the_sum_of_its_rows(name):
    lm, _ = made(name)
    rows = encoded(lm, source="{soft:2}" + SOURCE[lm.kind])
    start = torch.randn(2, 2, 24, dtype=torch.float64)

    def gradient(groups: list[list[int]], step: float = 0.0) -> torch.Tensor:
        leaf = (start + step).requires_grad_()
        bank = stack([SoftPrompt(leaf[0]), SoftPrompt(leaf[1])], lm.embed)
        for group in groups:
            score(lm, [rows[b] for b in group], bank, tasks(*[b % 2 for b in group])).logsumexp(-1).sum().backward(
                retain_graph=True
            )
        assert leaf.grad is not None
        return leaf.grad

    torch.testing.assert_close(gradient([[0, 1, 2]]), gradient([[0], [1], [2]]), atol=1e-8, rtol=0)
    assert (gradient([[0, 1, 2]]) - gradient([[0, 1]])).abs().max() > 1e-4


class Widest(TorchDispatchMode):
    """Records the most rows of any tensor whose last axis is the vocabulary."""

    def __init__(self, vocab: int):
        super().__init__()
        self.vocab, self.rows = vocab, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.shape[-1:] == (self.vocab,):
                self.rows = max(self.rows, tensor.numel() // self.vocab)
        return result


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_no_logits_of_all_positions(name):
    lm, plain = made(name)
    one, several = encoded(lm, words=(("a",), ("the",))), encoded(lm)
    assert several[0].plan is not None
    pieces = {word for label in several[0].plan.words for word in label}
    if lm.kind == "masked":
        read = sum({len(word) for word in pieces})
    else:
        read = len({word[:j] for word in pieces for j in range(len(word))})
    for rows, wanted in ((one, 0), (several, 3 * read)):
        with Widest(lm.dims.vocab) as seen, torch.no_grad():
            score(lm, rows, None, tasks(0, 0, 0))
        assert seen.rows == wanted
    with Widest(lm.dims.vocab) as seen, torch.no_grad():  # the control
        plain(torch.zeros(3, 20, dtype=torch.long))
    assert seen.rows == 60


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_score_all_keeps_the_order_and_halves(name, capsys):
    lm, _ = made(name)
    texts = [" ".join(TEXTS[: 1 + n % 3]) + " good" * (n % 5) for n in range(17)]
    rows = encoded(lm, texts=texts, source="{soft:1}" + SOURCE[lm.kind])
    bank = stack([SoftPrompt(torch.randn(1, 24, dtype=torch.float64)) for _ in range(3)], lm.embed)
    task = torch.arange(17) % 3
    wanted = torch.cat([score(lm, [row], bank, task[b : b + 1]) for b, row in enumerate(rows)])
    torch.testing.assert_close(score_all(lm, rows, bank, task), wanted, atol=1e-6, rtol=0)
    torch.testing.assert_close(score_all(lm, rows, bank, task, tokens_per_batch=1), wanted, atol=1e-6, rtol=0)
    assert capsys.readouterr().err == ""
    passes = rows[0].plan.layout().passes
    small = Watched(lm, most=2 * passes)
    torch.testing.assert_close(score_all(small, rows, bank, task), wanted, atol=1e-6, rtol=0)
    assert "out of memory: going on with" in capsys.readouterr().err
    with pytest.raises(ModelError, match="single row"):
        score_all(Watched(lm, most=0), rows, bank, task)


def test_other_errors_are_not_taken_for_memory():
    lm, _ = made("gpt2")

    class Broken(Watched):
        def hidden_at(self, inputs, prefix=None):
            raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        score_all(Broken(lm), encoded(lm), None, tasks(0, 0, 0))


def test_what_cannot_be_scored():
    lm, _ = made("gpt2")
    with pytest.raises(ConfigError, match="no label words"):
        score(lm, encoded(lm, words=()), None, tasks(0, 0, 0))
    with pytest.raises(ConfigError, match="slots for 3 positions"):
        score(lm, encoded(lm, source="{soft:3}{text}:"), None, tasks(0, 0, 0))
    bank = stack([SoftPrompt(torch.zeros(2, 24, dtype=torch.float64))], lm.embed)
    with pytest.raises(ConfigError, match="slots for 3 positions, and the prompt given fills 2"):
        score(lm, encoded(lm, source="{soft:3}{text}:"), bank, tasks(0, 0, 0))
