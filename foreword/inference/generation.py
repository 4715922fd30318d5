"""Generate text after rows, for answers in text and for reasoning, as `inference.scoring` scores labels."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, final

import torch

from foreword.core.artefact import Artefact
from foreword.core.format import Decoding, Format
from foreword.core.prompts import Bank, HardPrompt, PrefixPrompt, stack
from foreword.core.shapes import Bool, Float, Int, Tensor
from foreword.errors import ConfigError, ModelError
from foreword.inference.batched import batches_of, view
from foreword.models.base import FrozenLM
from foreword.models.decoding import IncrementalText, Sampling, looking_back
from foreword.models.encoding.batch import Encoded, collate, prepare
from foreword.models.encoding.encoder import Encoder
from foreword.models.generate import Ask, GeneratedText, write
from foreword.models.shared_prefix import can_split, compile_prefixes, shared_columns
from foreword.tasks.rows import Row

Pairs = Sequence[tuple[Artefact, Sequence[Row]]]
OnText = Callable[
    [int, int, int, GeneratedText], int
]  # artefact, row, sample, text: how many more the row needs at least
ALL = 1 << 30  # as many as were asked for


def write_rows(lm: FrozenLM | None, pairs: Pairs) -> list[list[str]]:
    """Return the first text that each artefact generates after each of its rows, in order; it may be empty.

    Rows of all artefacts share batches, and what the rows of one artefact begin with is read once for all of them.

    Raises: ModelError, ConfigError, DataError as `write_samples` says.
    """
    texts = [[""] * len(rows) for _, rows in pairs]

    def keep(artefact: int, row: int, sample: int, found: GeneratedText) -> int:
        texts[artefact][row] = found.text
        return 0

    write_samples(lm, pairs, keep, most=1)
    return texts


@torch.no_grad()
def write_samples(lm: FrozenLM | None, pairs: Pairs, on_text: OnText, most: int | None = None) -> None:
    """Generate samples after each row, as many as its format asks for (`most` at most), until it needs no more.

    Each text is passed to `on_text` as soon as it ends, which returns how many more the row needs at least. A row's
    sample is drawn from the format's seed, the row's text and the sample's number, so that it is the same in any batch.

    Raises: ModelError for a masked model; ConfigError for an artefact without decoding, or whose max_new_tokens leave
    no room for the row; DataError for a row that is too long and may not be cut.
    """
    if not pairs:
        return
    if lm is None or any(artefact.value.label_count is not None for artefact, _ in pairs):
        raise ModelError("Probes and word counts have labels only; they write nothing.")
    if not lm.writes:
        raise ModelError(
            f"{lm.name!r} is a masked model, which cannot write; load it with kind causal or choose another."
        )
    assert not any(artefact.value.rewrites_rows for artefact, _ in pairs), "neighbours answer with labels"
    alone = [i for i, (artefact, _) in enumerate(pairs) if artefact.value.changes_weights]
    prompts = [i for i in range(len(pairs)) if i not in {*alone}]
    for group in ([prompts] if prompts else []) + [[i] for i in alone]:
        read, bank = view(lm, [pairs[i][0].value for i in group])
        asked = [_asks(read, pairs[i], n, most) for n, i in enumerate(group)]
        flat = [(i, row, ask) for i, asks in zip(group, asked, strict=True) for row, ask in enumerate(asks)]
        beams = [one for one in flat if one[2].decoding.num_beams > 1]
        _write_beams(read, bank, beams, on_text)
        flat = [one for one in flat if one[2].decoding.num_beams == 1]

        def told(number: int, sample: int, found: GeneratedText, flat: Sequence[tuple[int, int, Ask]] = flat) -> int:
            return on_text(flat[number][0], flat[number][1], sample, found)

        write(read, [ask for _, _, ask in flat], bank, told)


def written_form(form: Format) -> Format:
    """Return the format of rows for a model that generates text: without label words, which would take room."""
    return form.without_labels()


def encode_to_write(lm: FrozenLM, form: Format, rows: Sequence[Row], extra: int = 0) -> list[Encoded]:
    """Encode rows with room for the text that is generated after them; `extra` positions are left to a prefix.

    Raises: ConfigError if the template and max_new_tokens leave no room, or the format has no decoding; DataError as
    `encode_rows` says.
    """
    if form.decoding is None:
        raise ConfigError("The artefact does not say how text is written (its format has no decoding); it has labels.")
    encoder = Encoder.build(lm, written_form(form), extra)
    plain = [replace(row, options=()) for row in rows]
    if lm.kind == "seq2seq":  # the row has the encoder to itself
        encoder.require_room(lm.name, form.decoding.max_new_tokens)
        return encoder.encode_rows(plain)
    room = encoder.room - form.decoding.max_new_tokens
    if encoder.own > room:
        raise ConfigError(
            f"max_new_tokens {form.decoding.max_new_tokens} leaves no room for the row: {lm.name!r} has "
            f"{encoder.room + extra} positions, of which the prompt and its template take {extra + encoder.own}; ask "
            "for fewer, or shorten the template."
        )
    return replace(encoder, room=room).encode_rows(plain)


def _asks(lm: FrozenLM, pair: tuple[Artefact, Sequence[Row]], task: int, most: int | None) -> list[Ask]:
    artefact, rows = pair
    value, decoding = artefact.value.as_prompt, artefact.format.decoding
    encoded = encode_to_write(lm, artefact.format, rows, artefact.value.text_start)
    assert decoding is not None, "checked while encoding"
    prefixes: list[PrefixPrompt | None] = [value if isinstance(value, PrefixPrompt) else None] * len(encoded)
    at = 0 if isinstance(value, PrefixPrompt) or not encoded else shared_columns(encoded)
    splits = [can_split(lm, e, at, decoding.max_new_tokens) for e in encoded]
    if any(splits):
        bank = None if value is None else stack([value], lm.embed, lm.device)
        [prefix] = compile_prefixes(lm, [encoded[0].split(at)[0]], bank)
        prefixes = [prefix if split else None for split in splits]
        encoded = [e.split(at)[1] if split else e for e, split in zip(encoded, splits, strict=True)]
    count = min(decoding.num_return_sequences, most or decoding.num_return_sequences)
    ahead = count // 2 + 1 if decoding.early_stop and decoding.conclude is None else count
    return [
        Ask(e, prefix, task, decoding, tuple(_seed(decoding.seed, row, s) for s in range(count)), ahead)
        for e, prefix, row in zip(encoded, prefixes, rows, strict=True)
    ]


def _seed(seed: int, row: Row, sample: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}\n{sample}\n{row.text()}".encode()).digest()[:8], "big") >> 1


def _write_beams(lm: FrozenLM, bank: Bank | None, asked: Sequence[tuple[int, int, Ask]], on_text: OnText) -> None:
    """Generate by the library's own beam search, for rows of one decoding at a time."""
    by_decoding: dict[Decoding, list[tuple[int, int, Ask]]] = {}
    for one in asked:
        by_decoding.setdefault(one[2].decoding, []).append(one)
    for decoding, some in by_decoding.items():
        budget = max(1, lm.batch_tokens // decoding.num_beams)
        for batch in batches_of([ask.encoded for _, _, ask in some], budget):
            chosen = [some[i] for i in batch]
            asks = [ask for _, _, ask in chosen]
            own = _with_prefixes(lm, bank, asks)
            inputs, prefix = prepare(lm, collate([a.encoded for a in asks]), own, torch.arange(len(asks)))
            begun = inputs.attend_BS.shape[1] if lm.kind == "seq2seq" else 0
            ids_XL = lm.generate(inputs, prefix, **_beam_options(lm, decoding, begun))
            for (artefact, row, ask), ids in zip(chosen, ids_XL.tolist(), strict=True):
                on_text(artefact, row, 0, _beam_text(lm, ask, ids))


def _beam_options(lm: FrozenLM, decoding: Decoding, begun: int) -> dict[str, Any]:
    """Return the library's options of a beam search. A beam also ends as soon as its text has a stop string.

    A decoder's sequences have `begun` columns before the generated tokens. The rules about earlier tokens (repetition
    penalty, repeated n-grams, minimum length) are our own: the library's (transformers 5.23) do not see the first
    tokens generated in rows that were padded.
    """
    told: dict[str, Any] = {n: getattr(decoding, n) for n in ("num_beams", "length_penalty", "max_new_tokens")}
    sampling = Sampling.of(decoding, 0)
    if sampling.looks_back:
        told["logits_processor"] = [_LooksBack(sampling, lm.stops, begun)]
    if decoding.stop_strings:
        told["stopping_criteria"] = [_Stopped(lm, decoding.stop_strings, begun)]
    return {**told, "do_sample": False, "early_stopping": True}


@final
class _LooksBack:
    """Change the scores of the next token (sequences, vocabulary) by what each sequence has generated so far."""

    def __init__(self, sampling: Sampling, ends: frozenset[int], begun: int):
        self.sampling, self.ends, self.begun = sampling, ends, begun

    def __call__(self, ids_XL: Int[Tensor, "X L"], score_XV: Float[Tensor, "X V"]) -> Float[Tensor, "X V"]:
        pairs = zip(score_XV, ids_XL[:, self.begun :].tolist(), strict=True)
        return torch.stack([looking_back(score_V, self.sampling, ids, self.ends) for score_V, ids in pairs])


@final
class _Stopped:
    """Return which of the sequences generated so far have a stop string."""

    def __init__(self, lm: FrozenLM, stops: Sequence[str], begun: int):
        self.lm, self.stops, self.begun = lm, stops, begun

    def __call__(self, ids_XL: Int[Tensor, "X L"], scores: Any, **_: Any) -> Bool[Tensor, "X"]:
        texts = self.lm.tokenizer.batch_decode(
            ids_XL[:, self.begun :], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        found = [any(stop in text for stop in self.stops) for text in texts]
        return torch.tensor(found, dtype=torch.bool, device=ids_XL.device)


def _with_prefixes(lm: FrozenLM, bank: Bank | None, asks: Sequence[Ask]) -> Bank:
    """Return a bank with one prompt for each row, in order."""
    nothing = HardPrompt.empty()
    made = stack([ask.prefix or nothing for ask in asks], lm.embed, lm.device)
    if bank is None or bank.soft_TPD is None:
        return made
    return replace(made, soft_TPD=bank.soft_TPD[torch.tensor([ask.task for ask in asks], device=lm.device)])


def _beam_text(lm: FrozenLM, ask: Ask, ids: Sequence[int]) -> GeneratedText:
    writer, ended = IncrementalText(lm.tokenizer, ask.encoded.text_ids, ask.decoding.stop_strings), False
    count = 0
    for id in ids:
        count += 1
        if id in lm.stops or writer.add(id)[2]:
            ended = True
            break
    writer.end()
    return GeneratedText(writer.text, count, float("nan"), ended)
