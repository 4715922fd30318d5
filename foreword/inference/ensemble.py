"""Combine artefacts to one that answers as their ensemble: nothing is trained, and their rows share batches."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from foreword.core.arguments import checked
from foreword.core.artefact import Artefact
from foreword.core.values import Ensemble, Member, Rule
from foreword.errors import ArtefactError, ConfigError

NAME = "ensemble"


@checked
def ensemble(artefacts: Mapping[str, Artefact], rule: Rule = "mean") -> Artefact:
    """Combine artefacts, by the names that messages use, to one: the mean of their probabilities, or the majority.

    Members are words, soft prompts and prefixes, alike or mixed, over the same labels and fields; an ensemble among
    them contributes its members.

    Raises: ConfigError for fewer than two; ArtefactError for members that cannot answer together.
    """
    if len(artefacts) < 2:
        raise ConfigError(f"An ensemble needs two artefacts or more; {len(artefacts)} was given.")
    names = list(artefacts)
    first = artefacts[names[0]]
    members: list[Member] = []
    for name in names:
        _check(names[0], first, name, artefacts[name])
        members += _members(name, artefacts[name])
    bound = [a for a in artefacts.values() if not a.any_model] or [first]
    one = bound[0]
    for other in bound[1:]:
        levels = ("tokenizer", "shape", "weights")
        differs = [level for level in levels if other.fingerprint.get(level) != one.fingerprint.get(level)]
        if differs or other.model.get("kind") != one.model.get("kind"):
            mine, theirs = one.model.get("name"), other.model.get("name")
            raise ArtefactError(
                f"The models {theirs!r} and {mine!r} differ in their {', '.join(differs) or 'kind'}; the members of an "
                "ensemble are read by one model."
            )
    plain = replace(first.format, shift=(), temperature=1.0, calibration="none", premise=None)
    return Artefact(
        value=Ensemble(tuple(members), rule),
        format=plain,
        method=NAME,
        config={"rule": rule},
        seed=0,
        model=one.model,
        fingerprint=one.fingerprint,
        fields=first.fields,
        hashes=_shared([a.hashes for a in artefacts.values()]),
        metrics={"members": [f"{a.method}, seed {a.seed}" for a in artefacts.values()]},
        numbers_trained=sum(a.numbers_trained for a in artefacts.values()),
    )


def _members(name: str, artefact: Artefact) -> Sequence[Member]:
    parts = artefact.value.parts(artefact.format)
    if any(value.as_prompt is None or value.changes_weights for value, _ in parts):
        raise ArtefactError(
            f"{name} is of the form {artefact.form}; an ensemble holds words, soft prompts and prefixes, which share "
            "one frozen model."
        )
    return [Member(*part) for part in parts]


def _check(first_name: str, first: Artefact, name: str, other: Artefact) -> None:
    for what, mine, theirs in (
        ("labels", first.format.labels, other.format.labels),
        ("fields", first.fields, other.fields),
    ):
        if mine != theirs:
            raise ArtefactError(
                f"{name} has the {what} {', '.join(theirs) or 'of each row'} and {first_name} has "
                f"{', '.join(mine) or 'those of each row'}; the members of an ensemble answer the same question."
            )


def _shared(hashes: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the hashes of the splits whose rows are the same in all artefacts."""
    return {split: text for split, text in hashes[0].items() if all(h.get(split) == text for h in hashes)}
