"""Facts of LAMA T-REx: manual templates, ParaRel's paraphrases, AutoPrompt and soft prompts, one prompt a relation.

    python recipes/facts.py                                   5 relations, 40 test rows each: some minutes
    python recipes/facts.py --relations all --rows 200 --test 0 --out runs/facts-all    hours; the same command goes on
    python recipes/facts.py --data countries                  the embedded facts (pip install 'foreword[facts]')
    python recipes/facts.py --evidence                        a sentence that tells the fact, and the swapped control
    python recipes/facts.py --report docs/facts.md            no run: the tables of all that is there

Published, for other models, other candidates and other rows (Shin et al. 2020, BERT-base, the original LAMA of 41
relations, a common vocabulary): P@1 manual 31.1, LPAQA 34.1, AutoPrompt of 5 tokens 42.9. Nothing here is comparable
with that: the candidates are stated, and the test rows are those that ParaRel kept. What can be read off is the order
of the arms.

`majority` answers with the training rows' most frequent object: a prompt that is not above it may have learnt the
relation's prior and nothing else (Cao et al. 2021).

Every (relation, arm, seed) is one file in --out, and what is there is not run again. P47, P190 and P530 have no
training rows: the manual and paraphrase arms alone. Choices are made on development rows.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ending import ended

import foreword
from foreword.core.artefact import Artefact
from foreword.core.files import write_whole
from foreword.errors import ForewordError
from foreword.evaluation import facts as lines
from foreword.evaluation.compare import FailedRun
from foreword.tasks.label_metrics import rank_metrics
from foreword.tasks.relations import Facts, countries, evidenced, perturbed, read_facts
from foreword.training.contract import Step

FIVE = ("P17", "P30", "P103", "P176", "P1412")  # named before any run: three N-1 of places and makers, two of languages
HEAD = """# Facts

Written by `python recipes/facts.py --report docs/facts.md`. The name of a run says its model, its data, which answers
compete (the relation's own objects, or all), and how many training rows and test rows a relation has (0: all that there
are). The model computes in bfloat16 unless the name says otherwise. P@1, P@10 and MRR are means over relations with 95%
intervals; a relation counts once, however many rows it has. `majority` answers with the training rows' most frequent
object: what is not above it may have learnt the relation's prior and nothing else.

Published, and not comparable (Shin et al. 2020, BERT-base, the original LAMA of 41 relations, one common vocabulary of
candidates): P@1 manual 31.1, LPAQA 34.1, AutoPrompt of 5 tokens 42.9.
"""
OPTIONS: dict[str, dict[str, Any]] = {
    "autoprompt": {"steps": 20, "candidates": 24, "capitals": False, "objective": "class"},
    "prompt-tuning": {"steps": 100, "length": 5},
    "pez": {"steps": 100},
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="foreword-mini")
    parser.add_argument("--kind", choices=("masked", "causal"))
    parser.add_argument("--data", default="../shared/data/lama_trex", help="a folder of facts, or countries")
    parser.add_argument("--relations", default=",".join(FIVE), help="names with commas, or all")
    parser.add_argument("--arms", default="majority,manual,paraphrase,autoprompt,prompt-tuning")
    parser.add_argument("--candidates", choices=("relation", "all"), default="relation", help="what answers compete")
    parser.add_argument("--rows", type=int, default=40, help="training rows a relation, the pool among them (0: all)")
    parser.add_argument("--test", type=int, default=40, help="test rows a relation (0: all)")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, help="of autoprompt, instead of 20")
    parser.add_argument(
        "--evidence", action="store_true", help="relation extraction: evidence, and its swapped control"
    )
    parser.add_argument("--dtype", default="bfloat16", help="of the model; learnt numbers are fp32 [bfloat16]")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path("runs/facts"))
    parser.add_argument("--report", type=Path, help="write the tables of all runs in --out to this document, and stop")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    if given.report:
        write_whole(given.report, document(given.out).encode())
        return 0
    return ended(given.out, lambda: run(given), given.threads)


def run(given: argparse.Namespace) -> list[FailedRun]:
    """Every seed, and the tables on stdout."""
    facts = countries() if given.data == "countries" else read_facts(given.data)
    if given.relations != "all" and given.data != "countries":
        facts = Facts({n: facts.relation(n) for n in given.relations.split(",")}, facts.where)
    lm = foreword.load(given.model, kind=given.kind, dtype=given.dtype)
    for seed in range(given.seeds):
        run_seed(given, lm, facts, seed)
    print(tables(file_of(given, lm, "x", "x", 0).parent, given.arms.split(",")))
    return []


def run_seed(given: argparse.Namespace, lm: Any, facts: Facts, seed: int) -> None:
    """Every arm that is not there yet, relation by relation where it is learnt, so that a stop loses one of them."""
    asked = lines.ask(lm, facts, given.candidates, train=given.rows or None, test=given.test or None, seed=seed)
    if given.evidence:
        asked = [lines.RelationQuery(a.relation, None if a.task is None else told(a, seed), a.reason) for a in asked]
    for one in asked:
        if one.task is None:
            print(f"{one.relation.name}: {one.reason}", file=sys.stderr)
    for arm in given.arms.split(","):
        missing = [
            a for a in asked if a.task is not None and not file_of(given, lm, arm, a.relation.name, seed).exists()
        ]
        if not missing:
            continue
        if arm == "majority":
            for one in missing:
                if one.task is not None and one.task.train:
                    write(given, lm, one, arm, seed, {"ranks": lines.majority_ranks(one.task).tolist()})
            continue
        if arm in ("manual", "paraphrase"):
            make = lines.manual if arm == "manual" else lines.best_paraphrase
            keep(
                given,
                lm,
                missing,
                dict(zip([a.relation.name for a in missing], make(lm, missing), strict=True)),
                arm,
                seed,
            )
            continue
        options = dict(OPTIONS.get(arm, {}))
        if given.steps and arm == "autoprompt":
            options["steps"] = given.steps
        groups = [missing] if arm == "prompt-tuning" else [[a] for a in missing]
        for group in groups:
            made = lines.learnt(lm, group, arm, options, seed, progress)
            good = {name: a for name, a in made.items() if isinstance(a, Artefact)}
            for name, reason in made.items():
                if isinstance(reason, str):
                    print(f"{name}, {arm}: {reason}", file=sys.stderr)
            keep(given, lm, group, good, arm, seed)


def told(one: Any, seed: int) -> Any:
    """The relation's task with evidence; the arms then read both it and its swapped control."""
    try:
        return evidenced(one.relation, one.task, seed)
    except ForewordError as error:
        print(f"{one.relation.name}: {error}", file=sys.stderr)
        return None


def keep(given: Any, lm: Any, asked: list[Any], artefacts: dict[str, Artefact], arm: str, seed: int) -> None:
    """Ranks on the test rows, all relations in shared batches, one file each."""
    if not artefacts:
        return
    swapped: dict[str, Any] = {}
    if given.evidence:
        control = [lines.RelationQuery(a.relation, None if a.task is None else perturbed(a.task, seed)) for a in asked]
        swapped = {a.relation: a.rank_R for a in lines.answer(lm, control, artefacts, arm, seed)}
    for found in lines.answer(lm, asked, artefacts, arm, seed):
        [one] = [a for a in asked if a.relation.name == found.relation]
        told = {
            "ranks": found.rank_R.tolist(),
            "swapped_ranks": swapped[found.relation].tolist() if found.relation in swapped else None,
            "template": found.artefact.format.template.source,
            "metrics": found.artefact.metrics,
        }
        write(given, lm, one, arm, seed, told)


def write(given: Any, lm: Any, one: Any, arm: str, seed: int, told: dict[str, Any]) -> None:
    """One relation's file of one arm."""
    task = one.task
    record = {
        "relation": one.relation.name,
        "arm": arm,
        "seed": seed,
        "candidates": len(task.labels),
        "rows": {"train": len(task.train), "validation": len(task.validation), "test": len(task.test)},
        "hashes": task.hashes(),
        **told,
    }
    write_whole(file_of(given, lm, arm, one.relation.name, seed), json.dumps(record, ensure_ascii=False).encode())
    measured = rank_metrics(np.array(told["ranks"]))
    print(f"{one.relation.name}, {arm}, seed {seed}: {measured}", file=sys.stderr, flush=True)


def file_of(given: Any, lm: Any, arm: str, relation: str, seed: int) -> Path:
    what = f"{Path(given.data).name}-{given.candidates}-{given.rows}-{given.test}"
    what += "-evidence" if given.evidence else ""
    what += "" if given.dtype == "bfloat16" else f"-{given.dtype}"
    options = f"-{given.steps}" if given.steps and arm == "autoprompt" else ""
    return given.out / f"{lm.name}-{lm.kind}-{what}".replace("/", "_") / f"{relation}-{arm}{options}-{seed}.json"


ARMS = ("majority", "manual", "paraphrase", "autoprompt", "pez", "prompt-tuning", "prefix-tuning")


def document(out: Path) -> str:
    """The tables of every run in a folder."""
    parts = [HEAD]
    for folder in sorted(f for f in out.iterdir() if f.is_dir()) if out.is_dir() else []:
        parts += [f"## {folder.name}", "", tables(folder, ARMS), ""]
    return "\n".join(parts)


def tables(folder: Path, arms: Sequence[str]) -> str:
    """What a folder holds: all relations with the first seed; then, with every seed, those that were run with more."""
    records = [json.loads(f.read_text(encoding="utf-8")) for f in sorted(folder.glob("*.json"))]
    first = table([r for r in records if r["seed"] == 0], arms)
    more = {r["relation"] for r in records if r["seed"]}
    return f"{first}\n\n{table([r for r in records if r['relation'] in more], arms)}" if more else first


def table(records: Sequence[dict[str, Any]], arms: Sequence[str]) -> str:
    """The arms on the relations and seeds that all of them have, with intervals; then each relation."""
    arms = [a for a in arms if any(r["arm"] == a for r in records)]
    shared = set.intersection(*({r["relation"] for r in records if r["arm"] == a} for a in arms)) if arms else set()
    seeds = sorted({r["seed"] for r in records})
    sizes = [r["rows"]["test"] for r in records if r["arm"] == arms[0] and r["seed"] == seeds[0]]
    names = {r["relation"] for r in records}
    rows = [
        f"{len(shared)} of {len(names)} relations, which every arm has; {len(seeds)} seed(s); {sum(sizes):,} test rows "
        "in all; intervals are over rows and seeds.",
        "",
    ]
    rows += ["| arm | P@1 | P@10 | MRR | swapped P@1 |", "|---|---|---|---|---|"]
    for arm in arms:
        own = [r for r in records if r["arm"] == arm and r["relation"] in shared]
        by = {n: ranks_of([r for r in own if r["relation"] == n]) for n in sorted(shared)}
        cells = [
            f"{100 * p:.1f} ({100 * low:.1f}-{100 * high:.1f})" for p, low, high in lines.macro_interval(by).values()
        ]
        swapped = [float((np.array(r["swapped_ranks"]) <= 1).mean()) for r in own if r.get("swapped_ranks")]
        rows.append(f"| {arm} | {' | '.join(cells)} | {100 * float(np.mean(swapped)):.1f} |" if swapped else
                    f"| {arm} | {' | '.join(cells)} | - |")  # fmt: skip
    rows += ["", "| relation | " + " | ".join(arms) + " |", "|---|" + "---|" * len(arms)]
    won = []
    for name in sorted({r["relation"] for r in records}):
        right: dict[str, float] = {}
        for arm in arms:
            own = [np.array(r["ranks"]) for r in records if (r["relation"], r["arm"]) == (name, arm)]
            if own:
                right[arm] = 100 * float((np.concatenate(own) <= 1).mean())
        rows.append(f"| {name} | {' | '.join(f'{right[a]:.1f}' if a in right else '-' for a in arms)} |")
        if right.get("manual", 0.0) > right.get("autoprompt", 100.0):
            won.append(name)
    if "manual" in arms and "autoprompt" in arms:
        rows += ["", f"The manual prompt is ahead of AutoPrompt on {len(won)}: {', '.join(won) or 'none'}."]
    searched = [r["metrics"] for r in records if r["arm"] == "autoprompt"]
    if searched:
        left, total = (sum(m[k] for m in searched) for k in ("left_their_start", "searches"))
        kept = sum(m["kept"] == "manual" for m in searched)
        rows += [
            "",
            f"autoprompt: {left} of {total} searches left their start; {kept} of {len(searched)} kept the manual one",
        ]
    return "\n".join(rows)


def ranks_of(records: list[dict[str, Any]]) -> Any:
    """A relation's ranks: (seeds, rows) where its seeds have the same test rows, else one after the other."""
    same = len({r["hashes"]["test"] for r in records}) == 1
    return (np.stack if same else np.concatenate)([np.array(r["ranks"]) for r in records])


def progress(step: Step) -> None:
    if step.step % 10 == 0:
        print(f"  {step.name}: step {step.step} of {step.steps}, loss {step.loss:.4f}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
