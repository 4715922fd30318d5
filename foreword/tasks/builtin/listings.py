"""Generate builtin:listings: synthetic tables of places to go, and sentences that describe them. For generation.

A row is a place as `name[Golden Heron], kind[hotel], area[old town], ...`: its name and kind, and two to four of area,
price, opening time, what it is known for, and whether children may come. It has three different texts, drawn from a
grammar of openings, clauses and their order, each of which says every attribute once. Three tasks share their training
rows and differ in what they test: new places of known words (listings); names, areas, hours and features that no
training row has (listings-values); and two kinds of place that no training row has (listings-kinds).
"""

import random
from collections.abc import Iterator

from foreword.tasks.builtin.grammar import ShuffledDeck, articles, pools
from foreword.tasks.builtin.listings_words import AREAS, FEATURES, FIRST, HOURS, LAST, NEW_KINDS, PRICES, SAID
from foreword.tasks.rows import Table
from foreword.tasks.task import Task

SIZES = {"train": 800, "validation": 100, "test": 200}
TEXTS = 3
OPTIONAL = ("area", "price", "opens", "known for", "children")


def places(part: str, tested: str = "") -> Iterator[dict[str, str]]:
    """Yield places without end, as attributes. `tested` "values" takes words of the test, "kinds" kinds of the test."""
    rng = random.Random(f"listings {part} {tested}")
    split = "test" if tested == "values" else "train"
    kinds = [kind for kind in FEATURES if (kind in NEW_KINDS) == (tested == "kinds")]
    kind = ShuffledDeck(rng, kinds)
    first, last, area, hour = (ShuffledDeck(rng, pools(words)[split]) for words in (FIRST, LAST, AREAS, HOURS))
    features = {name: ShuffledDeck(rng, pools(FEATURES[name])[split]) for name in kinds}
    while True:
        own = kind()
        drawn = {
            "area": area(),
            "price": rng.choice([*PRICES]),
            "opens": hour(),
            "known for": features[own](),
            "children": rng.choice(["yes", "no"]),
        }
        told = set(rng.sample(OPTIONAL, rng.randint(2, 4)))
        yield {"name": f"{first()} {last()}".title(), "kind": own} | {k: v for k, v in drawn.items() if k in told}


def text(place: dict[str, str], rng: random.Random) -> str:
    """Describe a place in sentences drawn with `rng`, which say every attribute once."""
    left = [name for name in OPTIONAL if name in place]
    rng.shuffle(left)
    opening, used = rng.choice([(shape, names) for shape, names in SAID["open"] if set(names) <= set(left)])
    said = [opening]
    left = [name for name in left if name not in used]
    while left:
        clause = _clause(place, left.pop(), rng)
        if left and rng.random() < 0.5:
            clause = f"{clause}, and {_clause(place, left.pop(), rng)}"
        said.append(clause)
    filled = articles(". ".join(said).format_map(_spoken(place)))
    return ". ".join(part[0].upper() + part[1:] for part in filled.split(". ")) + "."


def _clause(place: dict[str, str], name: str, rng: random.Random) -> str:
    return rng.choice(SAID[f"{name} {place[name]}"] if name in ("price", "children") else SAID[name])[0]


def _spoken(place: dict[str, str]) -> dict[str, str]:
    """Return the words of the slots by name, with `_` for a blank, and the words of the price as `cost`."""
    return {name.replace(" ", "_"): value for name, value in place.items()} | {
        "cost": PRICES.get(place.get("price", ""), "")
    }


def rows(part: str, size: int, tested: str, seen: set[str]) -> Table:
    """Build a table of `size` places that are not in `seen`, each with `TEXTS` different texts; add them to `seen`."""
    rng, records = random.Random(f"listings texts {part} {tested}"), []
    for place in places(part, tested):
        source = ", ".join(f"{name}[{value}]" for name, value in place.items())
        if source in seen:
            continue
        seen.add(source)
        ways = [text(place, rng)]
        while len(ways) < TEXTS:
            another = text(place, rng)
            ways += [another] if another not in ways else []
        records.append({"source": source, "targets": ways})
        if len(records) == size:
            return Table(tuple(records), f"builtin:listings {part}")
    raise AssertionError("places are endless")


def load(tested: str = "") -> Task:
    """Build the task, which always has the same rows; `tested` says what is new in its test rows."""
    seen: set[str] = set()
    tables = {part: rows(part, SIZES[part], "", seen) for part in ("train", "validation")}
    tables["test"] = rows("test", SIZES["test"], tested, seen)
    name = f"listings-{tested}" if tested else "listings"
    task = Task(
        tables,
        name=name,
        template="{source|shorten}\nText: {answer}",
        metric="bleu",
        case="uncased",
        slots="listings",
    )
    return task.with_(synthetic=True, notes=("text generated for Foreword, not written by users",))


def load_values() -> Task:
    return load("values")


def load_kinds() -> Task:
    return load("kinds")
