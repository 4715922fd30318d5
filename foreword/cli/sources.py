"""Read the tasks of episodes for the command line: one task whose classes are kept apart, or a folder of tasks."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from foreword.cli.shared_options import DataChoice
from foreword.cli.store import read_tasks
from foreword.errors import ForewordError

if TYPE_CHECKING:
    from foreword.tasks.task import Task


def read_source(data: str, classes: str | None, which: DataChoice) -> "Task":
    """Read a task whose classes are kept apart, by a named split or the folder's own; else the task as it is."""
    from foreword.tasks.class_splits import OWN, has_classes, read_classes

    if classes is None and not has_classes(data):
        return which.read(data)
    return which.read(data, reader=partial(read_classes, split=classes or OWN))


def read_family(folder: str | Path, which: DataChoice) -> "dict[str, Task]":
    """Read every task of a folder. Raises: the first error, since one start is learnt over all."""
    results: dict[str, Task] = {}
    for name, task in read_tasks(str(folder), which).items():
        if isinstance(task, ForewordError):
            raise task
        results[name] = task
    return results
