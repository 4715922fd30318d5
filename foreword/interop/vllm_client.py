"""Ask a vLLM server with a learnt prompt. `foreword export --to vllm` copies this file; it needs no Foreword.

    vllm serve MODEL --enable-prompt-embeds
    python client.py "a text" "another"             # each label's probability
    python client.py --continue 40 "a text"         # the text that follows

It needs torch, transformers and openai, and reads row.json and prompt.pt beside it. The text's vectors are those of the
model's input embedding; the prompt's stand where the template has its slots; the server is sent the whole row.
"""

import argparse
import base64
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from openai import OpenAI
from transformers import AutoModelForCausalLM, AutoTokenizer

LIKELIEST = 20  # as many as vLLM tells, unless it was started with a higher --max-logprobs


def load(folder: Path) -> tuple[dict[str, Any], torch.Tensor]:
    """Return the layout of a row, and the prompt's vectors, [positions, hidden]."""
    row = json.loads((folder / "row.json").read_text(encoding="utf-8"))
    return row, torch.load(folder / "prompt.pt", weights_only=True)


def row_ids(row: Mapping[str, Any], tokenizer: Any, fields: Mapping[str, str]) -> tuple[list[int], list[int]]:
    """Return a row's token ids, and for each of them -1, or the position of the prompt that stands in its place."""
    ids: list[int] = []
    slots: list[int] = []
    for item in row["items"]:
        if "slot" in item:
            start, end = item["slot"]
            ids += [0] * (end - start)
            slots += range(start, end)
        else:
            found = item["ids"] if "ids" in item else tokens(row, tokenizer, item, fields)
            ids += found
            slots += [-1] * len(found)
    longest = max((len(word) for words in row["labels"].values() for word in words), default=1)
    if len(ids) + longest - 1 > row["room"]:
        raise ValueError(f"The row takes {len(ids)} tokens and there is room for {row['room']}; shorten the text.")
    return ids, slots


def tokens(row: Mapping[str, Any], tokenizer: Any, item: Mapping[str, Any], fields: Mapping[str, str]) -> list[int]:
    """Return the ids of a stretch of text with fields in it. Text that looks like a special token is read as plain
    text."""
    text = "".join(part if isinstance(part, str) else trim(fields[part["field"]], part) for part in item["text"])
    text = trim(text, item)
    results: list[int] | None = None
    # Behind a slot some tokenizers put a space before a text; so it is read after another text, which is taken off.
    for context in item["contexts"]:
        own, both = plain(tokenizer, context), plain(tokenizer, context + text)
        if both[: len(own)] == own:
            results = both[len(own) :]
            break
    results = plain(tokenizer, text) if results is None else results
    if not set(row["special"]).isdisjoint(results):
        raise ValueError(f"The text {text!r} has the piece of a special token; take it out.")
    return results


def trim(text: str, how: Mapping[str, Any]) -> str:
    text = text.lstrip() if how["strip_left"] else text
    return text.rstrip() if how["strip_right"] else text


def plain(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def row_embeds(
    ids: Sequence[int], slots: Sequence[int], embedding: Any, prompt: torch.Tensor, after: Sequence[int] = ()
) -> torch.Tensor:
    """Return the row's vectors, [tokens, hidden], in the embedding's dtype; those of the ids in `after` follow."""
    with torch.no_grad():
        vectors = embedding(torch.tensor([*ids, *after])).clone()
    at = torch.tensor([*slots, *[-1] * len(after)])
    vectors[at >= 0] = prompt[at[at >= 0]].to(vectors)
    return vectors


def to_base64(vectors: torch.Tensor) -> str:
    """Encode vectors as vLLM reads `prompt_embeds`: what torch.save writes of one tensor, in base64."""
    buffer = io.BytesIO()
    torch.save(vectors.detach().cpu().contiguous(), buffer)
    return base64.b64encode(buffer.getvalue()).decode()


def classify(
    client: OpenAI, model: str, row: Mapping[str, Any], tokenizer: Any, embedding: Any, prompt: torch.Tensor,
    fields: Mapping[str, str],
) -> dict[str, float]:  # fmt: skip
    """Return each label's probability among the labels. A word that is not among the likeliest tokens counts as 0."""
    words = [word for several in row["labels"].values() for word in several]
    if not words:
        raise ValueError("This prompt has no labels of its own; continue the text instead.")
    ids, slots = row_ids(row, tokenizer, fields)
    # Every beginning of a word is asked what comes next: the row alone first, then the row with pieces after it.
    starts = sorted({tuple(word[:n]) for word in words for n in range(len(word))}, key=len)
    answer = client.completions.create(
        model=model, prompt=None, max_tokens=1, temperature=0.0, logprobs=LIKELIEST,
        extra_body={
            "prompt_embeds": [to_base64(row_embeds(ids, slots, embedding, prompt, start)) for start in starts],
            "return_tokens_as_token_ids": True,
        },
    )  # fmt: skip
    follows: dict[tuple[int, ...], dict[str, float]] = {}
    for choice in answer.choices[: len(starts)]:
        told = choice.logprobs.top_logprobs if choice.logprobs else None
        follows[starts[choice.index]] = told[0] if told else {}

    def score(word: Sequence[int]) -> float:
        return sum(follows[tuple(word[:n])].get(f"token_id:{word[n]}", -math.inf) for n in range(len(word)))

    weights = {label: sum(math.exp(score(word)) for word in several) for label, several in row["labels"].items()}
    total = sum(weights.values())
    if not total:
        raise ValueError(f"No label word is among the {LIKELIEST} likeliest tokens; see --max-logprobs in README.md.")
    return {label: weight / total for label, weight in weights.items()}


def go_on(
    client: OpenAI, model: str, row: Mapping[str, Any], tokenizer: Any, embedding: Any, prompt: torch.Tensor,
    fields: Mapping[str, str], count: int,
) -> str:  # fmt: skip
    """Return the likeliest text after the row, of `count` tokens at most."""
    ids, slots = row_ids(row, tokenizer, fields)
    answer = client.completions.create(
        model=model, prompt=None, max_tokens=count, temperature=0.0,
        extra_body={"prompt_embeds": to_base64(row_embeds(ids, slots, embedding, prompt))},
    )  # fmt: skip
    return answer.choices[0].text


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask a vLLM server with a learnt prompt.")
    parser.add_argument("texts", nargs="+", help="a text; for several fields a JSON object of them")
    parser.add_argument("--url", default="http://localhost:8000/v1")
    parser.add_argument("--model", help="the base model's name or folder, where it is not the recorded one")
    parser.add_argument("--served-as", help="the model's name on the server, where it is another")
    parser.add_argument("--continue", dest="count", type=int, default=0, metavar="N", help="go on for N tokens")
    given = parser.parse_args()
    row, prompt = load(Path(__file__).parent)
    name = given.model or row["base_model"]
    tokenizer = AutoTokenizer.from_pretrained(name)
    embedding = AutoModelForCausalLM.from_pretrained(name, dtype="auto").get_input_embeddings()
    client = OpenAI(base_url=given.url, api_key=os.environ.get("OPENAI_API_KEY", "EMPTY"))
    for text in given.texts:
        one = len(row["fields"]) == 1
        fields = {row["fields"][0]: text} if one else json.loads(text)
        asked = (client, given.served_as or name, row, tokenizer, embedding, prompt, fields)
        print(go_on(*asked, given.count) if given.count else json.dumps(classify(*asked), ensure_ascii=False))


if __name__ == "__main__":
    main()
