"""Tasks, which are what a mixture mixes: data on disk or the embedded suite -> tasks -> tokens ->
rows -> batches."""

from taskpgm.tasks import corpus
from taskpgm.tasks.formats import load_targets, load_tasks
from taskpgm.tasks.packing import Rows, pack
from taskpgm.tasks.stdlib import stdlib_tasks
from taskpgm.tasks.stream import draw, stream
from taskpgm.tasks.task import Example, Task
from taskpgm.tasks.tokenize import Encoded, encode, encode_text, special_notes
from taskpgm.tasks.tokenizer import check_vocabulary, load_tokenizer

__all__ = [
    "Encoded",
    "Example",
    "Rows",
    "Task",
    "check_vocabulary",
    "corpus",
    "draw",
    "encode",
    "encode_text",
    "load_targets",
    "load_tasks",
    "load_tokenizer",
    "pack",
    "special_notes",
    "stdlib_tasks",
    "stream",
]
