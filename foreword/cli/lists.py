"""List the methods, models and tasks that there are to choose from."""

import dataclasses
import typing

import click

from foreword.cli.console import note, pairs, print_json, table
from foreword.errors import ConfigError

json_flag = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command(short_help="List the methods, or the options of one.")
@click.argument("name", required=False)
@json_flag
def methods(name: str | None, as_json: bool) -> None:
    """List the methods, or the options of one.

    \b
    foreword methods
    foreword methods prefix-tuning
    """
    from foreword.core.doc import docs_of
    from foreword.methods import METHODS
    from foreword.training.options import kinds_of

    if name is not None and name not in METHODS:
        raise ConfigError(f"There is no method {name!r}; there are {', '.join(METHODS)}.")
    chosen = [METHODS[name]] if name else list(METHODS.values())
    listed = [
        {
            "name": m.name,
            "summary": m.summary,
            "source": m.source,
            "form": m.form,
            "freezes_lm": m.freezes_lm,
            "gradient": m.gradient,
            "mixed_batch": m.mixed_batch,
            "kinds": list(m.kinds),
            "answers": list(m.answers),
            "options": dataclasses.asdict(m.Config()),
            "descriptions": docs_of(m.Config),
        }
        for m in chosen
    ]
    if as_json:
        print_json(listed[0] if name else listed)
    elif name:
        (method,) = chosen
        pairs([("name", method.name), ("what", method.summary), ("source", method.source), ("form", method.form)])
        click.echo()
        kinds, docs = kinds_of(method.Config), docs_of(method.Config)
        table(
            ["option", "default", "allowed", "meaning"],
            [
                (name, _shown(value), _allowed(kinds[name]), docs[name])
                for name, value in dataclasses.asdict(method.Config()).items()
            ],
        )
    else:
        table(["method", "what it learns", "form", "model"], [_line(m) for m in chosen])
        note("Options of one: foreword methods NAME")


def _line(method: typing.Any) -> tuple[str, str, str, str]:
    model = "not used" if not method.uses_lm else "frozen" if method.freezes_lm else "trained"
    return method.name, method.summary, method.form, model


def _shown(value: object) -> str:
    if isinstance(value, str) and value != value.strip():
        return repr(value)
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _allowed(kind: typing.Any) -> str:
    from foreword.training.options import Range, Start

    if kind is Start:
        return "an artefact's folder"
    if typing.get_origin(kind) is typing.Literal:
        return ", ".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) is typing.Annotated:
        ranges = [str(extra) for extra in kind.__metadata__ if isinstance(extra, Range)]
        return ", ".join([_allowed(kind.__origin__), *ranges])
    if typing.get_args(kind):
        return " or ".join("none" if k is type(None) else _allowed(k) for k in typing.get_args(kind))
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "text")


@click.command(short_help="List the models that can be loaded.")
@json_flag
def models(as_json: bool) -> None:
    """List the embedded models and the families of models that can be loaded."""
    from foreword.models.hf.families import FAMILIES
    from foreword.models.load import EMBEDDED, TINY

    embedded = [
        {"name": n, "kind": k, "about": "22.7M parameters, trained for this project"} for n, k in EMBEDDED.items()
    ]
    embedded += [{"name": n, "kind": k, "about": "random weights over bytes, for trials"} for n, k in TINY.items()]
    known = [
        {"family": name, "kind": kind, "prompts": ["hard", "soft", *(["prefix"] if family.seam else [])]}
        for kind, families in FAMILIES.items()
        for name, family in families.items()
    ]
    if as_json:
        print_json({"embedded": embedded, "families": known})
        return
    table(["embedded model", "kind", "what it is"], [(e["name"], e["kind"], e["about"]) for e in embedded])
    click.echo()
    table(["family", "kind", "prompts"], [(f["family"], f["kind"], ", ".join(f["prompts"])) for f in known])
    note("Any folder or hub name of these families: foreword compare --model gpt2 ...")


@click.command(short_help="List the embedded tasks, or describe one.")
@click.argument("source", required=False)
@json_flag
def tasks(source: str | None, as_json: bool) -> None:
    """List the embedded tasks, or describe the one at SOURCE.

    \b
    foreword tasks
    foreword tasks builtin:sentiment
    foreword tasks data/sst2
    """
    from foreword.tasks.builtin import BUILTIN
    from foreword.tasks.read import read_task

    chosen = [source] if source else [f"builtin:{name}" for name in BUILTIN]
    results = {name: read_task(name) for name in chosen}
    if as_json:
        described = [
            {
                "source": name,
                "labels": list(task.labels),
                **({"metric": task.metric} if task.metric else {}),
                "fields": list(task.fields),
                "rows": {split: len(task.rows(split)) for split in ("train", "validation", "test")},
                "hashes": task.hashes(),
                "synthetic": task.synthetic,
            }
            for name, task in results.items()
        ]
        print_json(described[0] if source else described)
    elif source:
        task = results[source]
        pairs([("task", task.describe()), *[("", line) for line in task.notes]])
        click.echo()
        pairs([(_answer(task, r), "; ".join(r.fields.values())) for r in _one_each(task)])
    else:
        table(
            ["task", "labels", "train", "validation", "test", "text"],
            [
                (
                    name,
                    str(len(task.labels)),
                    *(str(len(task.rows(split))) for split in ("train", "validation", "test")),
                    "synthetic" if task.synthetic else "real",
                )
                for name, task in results.items()
            ],
            numbers=range(1, 5),
        )
        note("Your own: a folder or file (.jsonl, .csv, .parquet) or hf:owner/name; foreword tasks DIR describes it.")


def _answer(task: typing.Any, row: typing.Any) -> str:
    return task.labels[row.label] if task.labels else row.targets[0] if row.targets else ""


def _one_each(task: typing.Any, most: int = 8) -> list[typing.Any]:
    """Return the first training row of each label, at most `most`; of a task without labels, the first three rows."""
    rows = task.train or task.test
    if not task.labels:
        return list(rows[:3])
    first = {row.label: row for row in reversed(rows)}
    return [first[label] for label in sorted(first)][:most]
