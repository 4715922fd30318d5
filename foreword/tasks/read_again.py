"""Read the data of a finished run again."""

from collections.abc import Mapping
from typing import Any

from foreword.core.data_paths import ELSEWHERE
from foreword.errors import DataError
from foreword.tasks.read import read_task
from foreword.tasks.task import Task


def read_again(origin: Mapping[str, Any]) -> Task:
    """Read the task of a `Task.origin` again, and draw its rows as they were drawn.

    Raises: DataError if it is not there any more.
    """
    from foreword.tasks.class_splits import read_classes  # which reads through this file

    kept = {key: value for key, value in origin.items() if key not in ("then", "classes")}
    source, classes = kept.pop("source"), origin.get("classes")
    if ELSEWHERE in source:
        raise DataError(
            f"its rows were read from {source.partition(ELSEWHERE)[2]!r}, in a folder that the artefact does not tell; "
            "give the folder of its task with --tasks."
        )
    task = read_task(source, **kept) if classes is None else read_classes(source, classes, **kept)
    return draw_again(task, origin)


def draw_again(task: Task, origin: Mapping[str, Any]) -> Task:
    """Return the task with rows drawn from it as the origin says, wherever the task was read from."""
    for step in origin.get("then", []):
        arguments = {key: value for key, value in step.items() if key != "how"}
        task = task.few_shot(**arguments) if step["how"] == "few_shot" else task.limit(**arguments)
    return task
