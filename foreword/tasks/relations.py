"""Read facts: a subject, a relation and an object. Each relation is a task whose labels are the candidate objects.

A source of facts is a folder with train, validation and test rows of subject, object and relation, and
`templates.json`: for each relation its LAMA template and ParaRel patterns, with [X] for the subject and [Y] for the
object.
"""

import hashlib
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from foreword.core.text import parse_json
from foreword.errors import ConfigError, DataError
from foreword.tasks.sources import read_folder
from foreword.tasks.task import Task

SPLITS = ("train", "validation", "test")
Fact = Mapping[str, str]


@final
@dataclass(frozen=True)
class Relation:
    """Hold a relation with its facts by split, its manual template, and paraphrases of it."""

    name: str
    title: str
    template: str
    paraphrases: tuple[str, ...]
    facts: Mapping[str, tuple[Fact, ...]]

    @property
    def objects(self) -> tuple[str, ...]:
        return tuple(sorted({fact["object"] for rows in self.facts.values() for fact in rows}))


@final
@dataclass(frozen=True)
class Facts:
    """Hold the relations of a source, by name. `where` is the source."""

    relations: Mapping[str, Relation]
    where: str

    @property
    def objects(self) -> tuple[str, ...]:
        """Return all objects of all relations: the vocabulary of an open question."""
        return tuple(sorted({o for relation in self.relations.values() for o in relation.objects}))

    def relation(self, name: str) -> Relation:
        if name not in self.relations:
            raise ConfigError(f"{self.where} has no relation {name!r}; it has {', '.join(self.relations)}.")
        return self.relations[name]


def read_facts(folder: str | Path) -> Facts:
    """Read the facts of a folder. Raises: DataError if rows or templates are missing or malformed."""
    path = Path(folder).expanduser()
    try:
        templates = parse_json((path / "templates.json").read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}/templates.json cannot be read ({error}); facts need a template a relation") from error
    tables = read_folder(path)
    results: dict[str, dict[str, list[Fact]]] = {}
    for split in SPLITS:
        for index, record in enumerate(tables[split].records if split in tables else ()):
            fact = {k: record.get(k) for k in ("subject", "object", "relation")}
            if not all(isinstance(v, str) and v.strip() for v in fact.values()):
                raise DataError(f"{tables[split].place(index)} has no subject, object and relation; give all three")
            results.setdefault(str(fact["relation"]), {}).setdefault(split, []).append(
                {k: str(v) for k, v in fact.items()}
            )
    relations = {}
    for name, facts in results.items():
        told = templates.get(name)
        if not isinstance(told, dict) or "lama_template" not in told:
            raise DataError(f"{path}/templates.json has no lama_template for the relation {name!r}; add it")
        patterns = tuple(p for p in told.get("pararel_patterns", ()) if p != told["lama_template"])
        splits = {split: tuple(facts.get(split, ())) for split in SPLITS}
        relations[name] = Relation(name, told.get("name", name), told["lama_template"], patterns, splits)
    return Facts(relations, str(folder))


def fact_task(
    relation: Relation, candidates: Sequence[str], *, keep: Callable[[str], bool] | None = None, origin: Any = None
) -> Task:
    """Build a relation's task: the subject is the text, the candidates are the labels, the label word is the object.

    Rows whose object is no candidate, or is refused by `keep`, are left out, and the task's notes say how many. Without
    training rows (three relations of LAMA T-REx) only prompts that need none can be tried.

    Raises: DataError if no test row, or fewer than two candidates, are left.
    """
    allowed = [c for c in dict.fromkeys(candidates) if keep is None or keep(c)]
    index = set(allowed)
    rows = {
        split: [{"subject": f["subject"], "label": f["object"]} for f in facts if f["object"] in index]
        for split, facts in relation.facts.items()
    }
    if not rows["test"] or len(allowed) < 2:
        raise DataError(
            f"The relation {relation.name} has no test row whose object is a candidate; give more candidates"
        )
    whole = sum(len(facts) for facts in relation.facts.values())
    left = whole - sum(map(len, rows.values()))
    given: dict[str, Any] = {split: some for split, some in rows.items() if some}
    if "train" not in given:
        given.pop("validation", None)
    task = Task(**given, text="subject", labels=allowed, name=relation.name, template=templates_of(relation.template))
    words = {name: (name,) for name in allowed}  # objects are names: capitals and signs stay
    note = f"{len(allowed)} candidates; {left} of {whole} facts left out, whose object is none of them"
    return task.with_(label_words=words, notes=(*task.notes, note), origin=origin)


def templates_of(pattern: str) -> dict[str, str]:
    """Turn a pattern with [X] and [Y] into templates for masked and, if only signs follow [Y], for causal models.

    Raises: DataError if one of the two is missing or occurs twice.
    """
    if pattern.count("[X]") != 1 or pattern.count("[Y]") != 1:
        raise DataError(f"The pattern {pattern!r} must have [X] and [Y] once each")
    plain = pattern.replace("{", "{{").replace("}", "}}")
    masked = plain.replace("[X]", "{subject}").replace("[Y]", "{mask}")
    results = {"masked": masked}
    before, after = plain.split("[Y]")
    if not re.search(r"\w|\[X\]", after):
        results["causal"] = before.replace("[X]", "{subject}") + "{answer}"
    return results


def fact_source(place: str, keep: Callable[[str], bool] | None = None) -> Task:
    """Read `facts:FOLDER:RELATION` as a task whose candidates are the relation's objects.

    `place` is the text after `facts:`; the folder `countries` means the embedded facts (`facts:countries:capital`).
    """
    folder, colon, name = place.rpartition(":")
    if not colon:
        raise ConfigError(f"facts:{place} names no relation; write facts:FOLDER:P19, or facts:countries:capital")
    facts = countries() if folder == "countries" else read_facts(folder)
    relation = facts.relation(name)
    return fact_task(relation, relation.objects, keep=keep, origin={"source": f"facts:{place}"})


def evidenced(relation: Relation, task: Task, seed: int = 0) -> Task:
    """Put a sentence that states the fact before every question: a paraphrase of the relation, filled in.

    The sentence is made from a pattern, not found in a text. Raises: DataError for a relation without paraphrases.
    """
    if not relation.paraphrases:
        raise DataError(f"The relation {relation.name} has no paraphrase to tell its facts with")

    def told(row: Any, number: int) -> dict[str, str]:
        pattern = random.Random(f"{seed} {number} {row.fields['subject']}").choice(relation.paraphrases)
        object_ = task.labels[row.label]
        sentence = pattern.replace("[X]", row.fields["subject"]).replace("[Y]", object_)
        return {"context": sentence, "subject": row.fields["subject"], "label": object_}

    rows: dict[str, Any] = {s: [told(row, n) for n, row in enumerate(task.rows(s))] for s in SPLITS if task.rows(s)}
    template = {kind: "{context} " + text for kind, text in templates_of(relation.template).items()}
    made = Task(
        **rows, text=["context", "subject"], labels=task.labels, name=f"{task.name}-evidence", template=template
    )
    return made.with_(label_words=task.label_words)


def perturbed(task: Task, seed: int = 0) -> Task:
    """Replace the object in every row's evidence by another one of the relation, which becomes the right answer.

    This is the control of Shin et al. 2020, section 5: a model that reads the evidence answers with the new object, and
    one that remembers the fact does not.

    Raises: DataError for a row whose evidence does not hold its object.
    """
    changes: dict[str, Any] = {}
    for split in SPLITS:
        rows = []
        for number, row in enumerate(task.rows(split)):
            old = task.labels[row.label or 0]
            if row.label is None or old not in row.fields.get("context", ""):
                raise DataError(f"{row.where}: the evidence does not hold the object {old!r}; give rows with evidence")
            rng = random.Random(f"{seed} {split} {number}")
            new = rng.choice([n for n in range(len(task.labels)) if n != row.label])
            fields = {**row.fields, "context": _swapped(row.fields["context"], old, task.labels[new])}
            rows.append(row.__class__(fields, new, row.options, row.where))
        changes[split] = tuple(rows)
    return task.with_(**changes, name=f"{task.name}-perturbed", notes=(*task.notes, f"objects swapped, seed {seed}"))


def _swapped(text: str, old: str, new: str) -> str:
    """Replace every whole-word occurrence of `old`; if there is none, every occurrence."""
    found = re.sub(rf"(?<!\w){re.escape(old)}(?!\w)", lambda _: new, text)
    return found if found != text else text.replace(old, new)


def countries() -> Facts:
    """Build facts of the world's countries from the libraries countryinfo and Babel.

    The relations are capital, continent, currency and language. Facts are split by a hash of the country: six tenths
    train, a tenth validation, three tenths test.

    Raises: ConfigError if the libraries are not installed.
    """
    try:
        from babel import Locale
        from babel.numbers import get_currency_name
        from countryinfo import all_countries
    except ImportError as error:
        raise ConfigError("The facts of countries need two data libraries; pip install 'foreword[facts]'") from error
    languages = Locale("en").languages
    results: dict[str, list[tuple[str, str]]] = {name: [] for name in COUNTRY_TEMPLATES}
    for entry in (country.info() for country in all_countries()):
        name = entry.get("name")
        if not name:
            continue
        currency = next(iter(entry.get("currencies") or ()), None)
        language = next(iter(entry.get("languages") or ()), None)
        facts = {
            "capital": entry.get("capital"),
            "continent": entry.get("region"),
            "currency": get_currency_name(currency, locale="en") if currency else None,
            "language": languages.get(language) if language else None,
        }
        for relation, value in facts.items():
            if isinstance(value, str) and value.strip() and value != currency:
                results[relation].append((name, value.strip()))
    relations = {}
    for relation, pairs in results.items():
        splits: dict[str, list[Fact]] = {split: [] for split in SPLITS}
        for subject, object_ in sorted(dict(pairs).items()):
            splits[_split_of(subject)].append({"subject": subject, "object": object_, "relation": relation})
        patterns = COUNTRY_TEMPLATES[relation]
        facts = {split: tuple(rows) for split, rows in splits.items()}
        relations[relation] = Relation(relation, relation, patterns[0], patterns[1:], facts)
    return Facts(relations, "facts:countries")


COUNTRY_TEMPLATES = {
    "capital": ("The capital of [X] is [Y] .", "[X]'s capital city is [Y] .", "[X], whose capital is [Y] ."),
    "continent": ("[X] is located in [Y] .", "[X] lies in [Y] .", "[X] is a country in [Y] ."),
    "currency": ("The currency of [X] is the [Y] .", "In [X] people pay with the [Y] .", "[X]'s money is the [Y] ."),
    "language": ("The official language of [X] is [Y] .", "In [X] people speak [Y] .", "They speak [Y] in [X] ."),
}


def _split_of(subject: str) -> str:
    part = int(hashlib.sha256(subject.encode()).hexdigest(), 16) % 10
    return "train" if part < 6 else "validation" if part < 7 else "test"
