"""A task: a name, a family, and three disjoint sets of examples."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Example:
    """One row: a prompt with its response, or a chat.

    The text of a plain row is `prompt + response`, with nothing in between. A chat row holds
    `messages`, ((role, content), ...); its prompt and response are "", and the tokenizer's chat
    template writes its text.
    """

    prompt: str
    response: str
    messages: tuple[tuple[str, str], ...] | None = None

    @property
    def context(self) -> str | tuple[tuple[str, str], ...]:
        """Everything before the (last) answer. Rows that share it belong in the same split."""
        if self.messages is None:
            return self.prompt
        last = max(i for i, (role, _) in enumerate(self.messages) if role == "assistant")
        return self.messages[:last]


@dataclass(frozen=True)
class Task:
    """A task and its three splits.

    `train` is what a mixture draws from, `heldout` is what chooses the mixture (affinities, ratio,
    predicted loss), and `test` only judges the models trained on it. No prompt is in two of them.
    A `target` is judged and not mixed: its held-out and test rows are used, and it has no others.
    `notes` tells what loading decided for the user (a split cut off, rows dropped, ...).
    """

    name: str
    family: str
    train: tuple[Example, ...]
    heldout: tuple[Example, ...]
    test: tuple[Example, ...] = ()
    notes: tuple[str, ...] = ()
    target: bool = False

    @cached_property
    def content_hash(self) -> str:
        """sha256 (hex) of the name, the family and every row in order, but not of the notes."""
        sizes = (self.name, self.family, len(self.train), len(self.heldout))
        return _hash(sizes, self.train + self.heldout + self.test)

    @cached_property
    def train_hash(self) -> str:
        """sha256 (hex) of the training rows alone: what a model of this task depends on."""
        return _hash((), self.train)


def join(prompt: str, response: str) -> Example:
    """An example whose prompt and response are separated by white space.

    A newline is added to the prompt, unless it is empty or ends in white space, or the response
    begins with white space.
    """
    separated = not prompt or prompt[-1].isspace() or response[:1].isspace()
    return Example(prompt if separated else prompt + "\n", response)


def _hash(header: tuple[str | int, ...], examples: Iterable[Example]) -> str:
    digest = hashlib.sha256(json.dumps(header).encode())
    for example in examples:
        row = (example.prompt, example.response, example.messages)
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()
