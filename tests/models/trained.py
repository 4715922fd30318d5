"""Tokenizers trained on the spot, one of each design, and a model that is nothing but its tokenizer."""

from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from foreword.models.base import Dims, FrozenLM, Kind

CORPUS = [
    "a fine film with great actors and a good story.",
    "the plot was dull, the acting bad and the music terrible",
    "is this about sports? the team won the last game in new york",
    "not good, not bad: an ordinary evening at the cinema",
    "business news: markets fell while new shares rose (slowly)",
    "science and nature: the planet's moons were seen in newark",
] * 3
WORDS = sorted({word for line in CORPUS for word in line.split()})


def _refuse(*args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError("this model is only its tokenizer")


_Silent: Any = type("_Silent", (FrozenLM,), dict.fromkeys(FrozenLM.__abstractmethods__, _refuse))


class TextLM(_Silent):
    """A model for tests that never run one."""

    def __init__(self, tokenizer: Any, kind: Kind, context: int = 64):
        self.name, self.kind, self.tokenizer = "text-only", kind, tokenizer
        self.dims = Dims(width=4, layers=1, heads=1, head_size=4, vocab=len(tokenizer), context=context)


def _fast(backend: Tokenizer, around: tuple[str, str] | None, **names: Any) -> PreTrainedTokenizerFast:
    if around:
        first, last = around
        backend.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}".strip(),
            special_tokens=[(t, backend.token_to_id(t)) for t in around if t],
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def wordpiece() -> PreTrainedTokenizerFast:
    """As BERT's: lower case, [CLS] and [SEP]."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=150, special_tokens=special))
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    return _fast(backend, ("[CLS]", "[SEP]"), **{f"{k}_token": v for k, v in names.items()})


def _byte_bpe(special: list[Any]) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=380, special_tokens=special, initial_alphabet=alphabet)
    backend.train_from_iterator([" " + line for line in CORPUS], trainer)
    return backend


def byte_bpe() -> PreTrainedTokenizerFast:
    """As GPT-2's: no special tokens around a text."""
    return _fast(_byte_bpe(["<|endoftext|>"]), None, eos_token="<|endoftext|>", bos_token="<|endoftext|>")


def masked_byte_bpe() -> PreTrainedTokenizerFast:
    """As RoBERTa's: the mask takes the space before it."""
    mask = AddedToken("<mask>", lstrip=True, special=True)
    backend = _byte_bpe(["<s>", "</s>", "<pad>", "<unk>", mask])
    names = {"bos": "<s>", "eos": "</s>", "pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": mask}
    return _fast(backend, ("<s>", "</s>"), **{f"{k}_token": v for k, v in names.items()})


def unigram() -> PreTrainedTokenizerFast:
    """As XLM-R's: Unigram, and a space in front of every stretch of text."""
    mask = AddedToken("<mask>", lstrip=True, special=True)
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<s>", "<pad>", "</s>", "<unk>", mask], unk_token="<unk>"
    )
    backend.train_from_iterator(CORPUS, trainer)
    names = {"bos": "<s>", "eos": "</s>", "pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": mask}
    return _fast(backend, ("<s>", "</s>"), **{f"{k}_token": v for k, v in names.items()})


def first_space_bpe() -> PreTrainedTokenizerFast:
    """As Llama 2's: a space in front of a text's first word only, a begin-of-sequence token, no pad token."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"])
    trained = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trained.train_from_iterator(CORPUS, trainer)
    backend.model = trained.model
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return _fast(backend, ("<s>", ""), bos_token="<s>", eos_token="</s>", unk_token="<unk>")


MASKED: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "wordpiece": wordpiece,
    "masked_byte_bpe": masked_byte_bpe,
    "unigram": unigram,
}
CAUSAL: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte_bpe": byte_bpe,
    "first_space_bpe": first_space_bpe,
    "unigram": unigram,
    "wordpiece": wordpiece,
}
