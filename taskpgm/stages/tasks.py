"""Stage `tasks`: loads the tasks to mix, and writes tasks.json."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from taskpgm.artefact import read_json, write_json
from taskpgm.records import TaskEntry, TaskList, from_json, to_json
from taskpgm.stages.context import Context, say
from taskpgm.stages.estimate import Cost, Estimate
from taskpgm.stages.stage_artefact import StageArtefact

SECTIONS = ("seed", "tasks")
MADE = "tasks.json"


def artefacts(context: Context) -> Iterator[StageArtefact]:
    """One file: names, families, sizes and content hashes of all tasks."""
    yield task_file(context)


def task_file(context: Context) -> "TaskFile":
    """The one artefact of this stage."""
    return TaskFile(context.folder, context.judged_key, context)


@dataclass(frozen=True)
class TaskFile(StageArtefact):
    """tasks.json, which contains its own key, since it has no folder of its own."""

    uses_models: ClassVar[bool] = False

    def is_done(self) -> bool:
        return self._before() == self._now()

    def begin(self) -> None:
        pass

    def finish(self, **facts: Any) -> None:
        pass

    def make(self) -> dict[str, Any]:
        if before := self._before():
            say_changes(before, self._now())
        self.write()
        for note in sorted({note for task in self.context.judged for note in task.notes}):
            say("tasks", note)
        say_seen_targets(self.context)
        return {}

    def write(self) -> None:
        """Writes it, with the notes that are known by now."""
        write_json(self.folder / MADE, to_json(self._now()))

    def cost(self, estimate: Estimate) -> Cost:
        return Cost(self.summary())

    def summary(self) -> str:
        tasks, judged = self.context.tasks, self.context.judged
        targets = f" and {len(self.context.targets)} targets" if self.context.targets else ""
        return (
            f"{len(tasks)} tasks of {len({task.family for task in tasks})} families{targets}, "
            f"{self.context.sizes.sum():,} training, {sum(len(t.heldout) for t in judged):,} "
            f"held-out and {sum(len(t.test) for t in judged):,} test examples"
        )

    def _before(self) -> TaskList | None:
        try:
            found = read_json(self.folder / MADE, None)
            return None if found is None else from_json(TaskList, found)
        except ValueError as error:
            if "damaged" in str(error):
                raise
            return None  # from an older version, and will be replaced

    def _now(self) -> TaskList:
        return TaskList(
            self.key,
            [
                TaskEntry(
                    task.name,
                    task.family,
                    len(task.train),
                    len(task.heldout),
                    len(task.test),
                    task.content_hash,
                    [*task.notes, *self.context.tokenizer_notes(task)],
                    task.target,
                )
                for task in self.context.judged
            ],
        )


def say_seen_targets(context: Context) -> None:
    """Says which targets' prompts the mixed tasks train on: their losses tell little."""
    if not context.targets:
        return
    trained = {example.context for task in context.tasks for example in task.train}
    for task in context.targets:
        rows = (*task.heldout, *task.test)
        seen = sum(example.context in trained for example in rows)
        if seen:
            say("tasks", f"target {task.name}: {seen} of {len(rows)} prompts are trained on")


def say_changes(before: TaskList, now: TaskList) -> None:
    """Prints which tasks are new, gone or changed since the workdir was last used."""
    old = {task.name: task.hash for task in before.tasks}
    new = {task.name: task.hash for task in now.tasks}
    for verb, names in {
        "new": new.keys() - old.keys(),
        "gone": old.keys() - new.keys(),
        "changed, so what follows from it is made again": {
            name for name in old.keys() & new.keys() if old[name] != new[name]
        },
    }.items():
        for name in sorted(names):
            say("tasks", f"{name} is {verb}")
