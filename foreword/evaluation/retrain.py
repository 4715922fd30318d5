"""Make every artefact of a store again for a new base model, from its recorded recipe and rows, and compare.

A prompt learnt for one model cannot be used with another, but the way to learn it can.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from foreword.core.arguments import checked
from foreword.core.artefact import RECORD, Artefact
from foreword.core.files import folders_in, present
from foreword.core.format import Format
from foreword.errors import ArtefactError, DataError, ForewordError
from foreword.evaluation.compare import Stage
from foreword.evaluation.predictions import Found, Readers, primary
from foreword.evaluation.records import ARTEFACTS, RESULTS, Record, Store
from foreword.evaluation.statistics import Resampled, difference, interval
from foreword.evaluation.tasks import STACK, TaskLine, TaskReport, train_jobs, write_table
from foreword.inference.answers import answer_rows
from foreword.inference.scoring import score_rows as scores_of
from foreword.methods.registry import make_job
from foreword.models.base import FrozenLM
from foreword.models.compatibility import check
from foreword.models.load import load as load_by_name
from foreword.tasks.read_again import draw_again, read_again
from foreword.tasks.task import Task
from foreword.training.contract import Job, Progress

LoadModel = Callable[[str, str], FrozenLM]  # by name and kind


def load_model(name: str, kind: str) -> FrozenLM:
    """Load a model by the name and kind that an artefact recorded."""
    return load_by_name(name, kind=kind)


def find_artefacts(folder: str | Path) -> dict[str, Path]:
    """Return the artefacts by name, in order: of a store or comparison, of a folder of artefacts, or of one artefact.

    Raises: ArtefactError if there is none.
    """
    place = Path(folder)
    if (present(place) / RECORD).is_file():
        return {place.resolve().name: place}
    for parent in (place / ARTEFACTS, place):
        # The name, not where it stands this moment: `Artefact.load` looks itself.
        found = {name: parent / name for name, at in folders_in(parent).items() if (at / RECORD).is_file()}
        if found:
            return found
    raise ArtefactError(
        f"{folder} holds no artefact; give what `foreword train --out` or `foreword compare --out` wrote."
    )


@checked
def retrain(
    folder: str | Path,
    lm: FrozenLM,
    *,
    out: str | Path,
    load: LoadModel = load_model,
    tasks: Mapping[str, Task | ForewordError] | None = None,
    allow_changed_data: bool = False,
    stack: int = STACK,
    progress: Progress | None = None,
    on_stage: Callable[[Stage], None] | None = None,
) -> TaskReport:
    """Make every artefact of `folder` again for `lm`, in `out`, and compare test accuracy before and after.

    Rows come from the source that the recipe names, or from `tasks` by the artefact's name, drawn as the recipe says.
    Rows whose hashes differ from the recorded ones are an error of that artefact, unless `allow_changed_data`. The
    template and label words are the recorded ones; for a model of the other kind (masked, causal) they are the task's
    own for that kind. `load` loads the model that an artefact was made for, if its predictions were not kept with it.

    Raises: ArtefactError if there is nothing to make again, or `out` is `folder`.
    """
    result = find_artefacts(folder)
    new = Path(out).resolve()
    if new == Path(folder).resolve() or any((new / ARTEFACTS / n).resolve() == p.resolve() for n, p in result.items()):
        raise ArtefactError(f"--out {out} is the store itself; name a new folder, so that the old artefacts stay.")
    made: dict[str, Artefact] = {}
    jobs: dict[str, Job | ForewordError] = {}
    for name, place in result.items():
        try:
            made[name] = Artefact.load(place)
            given = None if tasks is None else tasks.get(name, DataError(f"no task is called {name!r}"))
            jobs[name] = job_again(lm, made[name], given, allow_changed_data=allow_changed_data)
        except ForewordError as error:
            jobs[name] = error
    report = train_jobs(lm, jobs, out=out, stack=stack, progress=progress, on_stage=on_stage)
    old = Before(Path(folder), load)
    lines = []
    for line in report.lines:
        job = jobs[line.name]
        if line.verdict == "failed" or isinstance(job, ForewordError):
            lines.append(line)
            continue
        earlier = old.accuracy(made[line.name], result[line.name], job.task)
        lines.append(_with_before(line, report, earlier))
    write_table(report.store, lines)
    return replace(report, lines=tuple(lines), notes=tuple(old.notes))


def job_again(
    lm: FrozenLM, artefact: Artefact, task: Task | ForewordError | None, *, allow_changed_data: bool = False
) -> Job:
    """Return the job that made an artefact, for another model.

    Raises: DataError if its rows are gone or have changed; ArtefactError if no recipe was recorded.
    """
    recipe = artefact.recipe
    if isinstance(task, ForewordError):
        raise task
    if not recipe.get("format"):
        raise ArtefactError("it has no recipe to make it again from (it was imported); train it from its rows.")
    if artefact.config.get("allow_remote"):
        raise ArtefactError(
            f"its recipe asks {artefact.config.get('url')!r} for proposals, and recorded addresses are not asked; "
            "train it again yourself, with --allow-remote."
        )
    if task is None:
        if not recipe.get("data"):
            raise DataError("its rows were given in memory, so the recipe cannot name them; give them with --tasks.")
        task = read_again(recipe["data"])
    elif recipe.get("data") and task.hashes() != artefact.hashes:
        task = draw_again(task, recipe["data"])
    changed = [split for split, now in task.hashes().items() if artefact.hashes.get(split) != now]
    if changed and not allow_changed_data:
        raise DataError(
            f"its {' and '.join(changed)} rows have changed since it was made (hashes differ), so before and after "
            "could not be compared; give the old rows, or pass --allow-changed-data."
        )
    form = Format.from_json(recipe["format"])
    if artefact.model.get("kind") != lm.kind:
        form = task.format(
            lm.kind,
            chat=lm.instructed,
            truncate=form.truncate,
            soft_first=form.soft_first,
            max_length=form.max_length,
            lm=lm,
        )
    return make_job(lm, task, artefact.method, options=artefact.config, seed=artefact.seed, form=form)


class Before:
    """Find the test results of the old artefacts, from the predictions kept with them or by reading the rows again."""

    def __init__(self, folder: Path, load: LoadModel):
        self.notes: list[str] = []
        self._load = load
        self._models: dict[tuple[str, str], FrozenLM | None] = {}
        self._store = Store(folder)
        self._records: dict[str, Record] = {}
        if (folder / RESULTS).is_file():
            self._records = {r.artefact: r for r in self._store.records() if r.artefact and r.role == "result"}

    def accuracy(self, artefact: Artefact, place: Path, task: Task) -> Resampled | None:
        """Return an artefact's main metric on the task's test rows; None, with a note, if it cannot be had."""
        record = self._records.get(f"{ARTEFACTS}/{place.name}")
        if record is not None and record.hashes["test"] == task.hashes()["test"]:
            kept = self._store.predictions(record)
            if kept is not None:
                return _primary(kept)
        try:
            lm = self._model(artefact)
            if lm is None:
                return None
            check(lm, artefact)
            result = Readers(scores_of, answer_rows).read(lm, artefact, task, task.test).found
        except ForewordError as error:
            self.notes.append(f"{place.name}: before is not known ({error})")
            return None
        return _primary(result)

    def _model(self, artefact: Artefact) -> FrozenLM | None:
        name, kind = artefact.model["name"], artefact.model["kind"]
        if (name, kind) not in self._models:
            try:
                self._models[name, kind] = self._load(name, kind)
            except ForewordError as error:
                self._models[name, kind] = None
                self.notes.append(f"before is not known for artefacts of {name} ({error})")
        return self._models[name, kind]


def _primary(found: Found) -> Resampled:
    name = primary(found.metrics())
    return found.resampled([name])[name]


def _with_before(line: TaskLine, report: TaskReport, earlier: Resampled | None) -> TaskLine:
    if earlier is None:
        return line
    kept = report.store.predictions(report.records[line.name])
    assert kept is not None, "predictions are written before their record"
    now = _primary(kept)
    if now.rows != earlier.rows:
        return replace(line, before=interval([earlier]))
    return replace(line, before=interval([earlier]), change=difference([now], [earlier]))
