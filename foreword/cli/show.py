"""Define `foreword show`: what an artefact is."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from foreword.cli.console import pairs, print_json, size
from foreword.cli.lists import json_flag
from foreword.cli.search_summary import candidate_lines

if TYPE_CHECKING:
    from foreword.core.artefact import Artefact
    from foreword.core.format import ChatOptions


@click.command(short_help="Show what an artefact is.")
@click.argument("artefact", metavar="ARTEFACT")
@json_flag
def show(artefact: str, as_json: bool) -> None:
    """Show what an artefact is, was made for and measured; it is checked on the way."""
    from foreword.core.artefact import Artefact

    found = Artefact.load(artefact)
    record = summary(found)
    if as_json:
        print_json(record)
        return
    pairs(_lines(record))


def summary(artefact: "Artefact") -> dict[str, Any]:
    form = artefact.format.to_json()
    return {
        "form": artefact.form,
        "method": artefact.method,
        "config": artefact.config,
        "seed": artefact.seed,
        "model": artefact.model,
        "fields": list(artefact.fields),
        "template": form["template"],
        "label_words": dict(zip(form["labels"], form["words"], strict=True)),
        **({"chat_options": form["chat_options"]} if "chat_options" in form else {}),
        **({"decoding": form["decoding"]} if "decoding" in form else {}),
        "calibration": {k: form[k] for k in ("shift", "temperature", "premise") if form.get(k)},
        **artefact.value.details(),
        "metrics": artefact.metrics,
        "numbers_trained": artefact.numbers_trained,
        "bytes_stored": artefact.bytes_stored,
        "fingerprint": artefact.fingerprint,
        "hashes": artefact.hashes,
        "parent": artefact.parent,
        **({"trace": artefact.trace} if artefact.trace else {}),
    }


def chat_lines(options: "ChatOptions") -> list[tuple[str, str]]:
    """Return what the chat template reads beside the messages, as names and values for a person."""
    told = [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in options.variables.items()]
    clock = [] if options.clock is None else [("chat clock", options.clock)]
    return [*([("chat options", ", ".join(told))] if told else []), *clock]


def _lines(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield names and values for a person; groups of values take a line each."""
    from foreword.core.format import ChatOptions

    for name, value in record.items():
        if value in ({}, None):
            continue
        if name == "chat_options":
            yield from chat_lines(ChatOptions.from_json(value))
        elif name == "model":
            yield name, f"{value['name']} ({value['kind']})"
        elif name in ("fingerprint", "hashes"):
            yield name, ", ".join(f"{key} {text[:12]}" for key, text in value.items())
        elif name == "decoding":
            yield name, ", ".join(f"{key}={json.dumps(v, ensure_ascii=False)}" for key, v in value.items())
        elif name == "members":
            yield from ((f"member {number}", _plain(source)) for number, source in enumerate(value, 1))
        elif name == "sites":
            yield from ((f"prefix of {site}", told) for site, told in value.items())
        elif name in ("config", "label_words", "calibration"):
            yield name.replace("_", " "), ", ".join(f"{key}={_plain(v)}" for key, v in value.items())
        elif name == "metrics":
            for key, result in value.items():
                if key == "candidates":
                    yield from candidate_lines(result)
                elif key == "search_rows":
                    yield "search rows", ", ".join(f"{part} {text[:12]}" for part, text in result.items())
                else:
                    yield key.replace("_", " "), _measured(result)
        elif name == "bytes_stored":
            yield "bytes stored", size(value)
        elif name == "trace":
            yield from _traced(value)
        else:
            yield name.replace("_", " "), _plain(value)


def _traced(trace: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what a search did: its starts, each step, and what each token of the prompt is worth."""
    begun = trace.get("starts")
    if begun:
        losses = ", ".join(f"{name} {loss:.4g}" for name, loss in begun["losses"].items())
        yield "starts", f"{losses}; the search began at {begun['chosen']}"
    for step in trace.get("steps", []):
        if "new" not in step:
            continue
        swap = ", ".join(
            f"slot {slot + 1} {old!r} -> {new!r}"
            for slot, old, new in zip(step["slot"], step["old"], step["new"], strict=True)
        )
        true = "not read whole" if step["true"] is None else f"true {step['true']:+.4f}"
        verdict = "accepted" if step["accepted"] else "refused"
        yield (
            f"step {step['step']}",
            f"{swap}: predicted {step['predicted']:+.4f}, {true}, rank {step['rank'] + 1} of {step['candidates']}, "
            f"{verdict}",
        )
    for one in trace.get("prompt", {}).get("without_token", []):
        yield "loss without", f"{one['token']!r}: {one['loss']:.4f}"
    for one in trace.get("prompt", {}).get("attention", []):
        yield (
            "attention to",
            f"{one['token']!r}: {one['all_layers']:.4f} over all layers, {one['last_layer']:.4f} in the last",
        )
    for which, words in trace.get("prompt", {}).get("top_words", {}).items():
        yield f"top words {which}", ", ".join(f"{w['word']!r} {w['probability']:.3f}" for w in words)


def _measured(value: Any) -> str:
    if not isinstance(value, dict):
        return _plain(value)
    return ", ".join(f"{key.replace('_', ' ')} {_plain(v)}" for key, v in value.items())


def _plain(value: Any) -> str:
    if isinstance(value, str) and value != value.strip():
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list) and value and isinstance(value[0], float):
        return "/".join(f"{v:+.3f}" for v in value)
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False) if value and isinstance(value[0], dict) else "/".join(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
