"""What is mixed: a task is a name, a family, and two disjoint sets of examples."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Example:
    """One row. Either a prompt and its response, or a chat.

    The text of a plain row is `prompt + response`, nothing in between. In a chat row `messages`
    holds ((role, content), ...), prompt and response are "", and the tokenizer's chat template
    decides.
    """

    prompt: str
    response: str
    messages: tuple[tuple[str, str], ...] | None = None

    @property
    def context(self) -> str | tuple[tuple[str, str], ...]:
        """What stands before the (last) answer: two rows that share it must not be in two
        splits."""
        if self.messages is None:
            return self.prompt
        last = max(i for i, (role, _) in enumerate(self.messages) if role == "assistant")
        return self.messages[:last]


@dataclass(frozen=True)
class Task:
    """A task: `train` is what a mixture may draw from, `heldout` is what it is measured on.

    `notes` says what was decided on the user's behalf while loading (a held-out split cut off,
    ...).
    """

    name: str
    family: str
    train: tuple[Example, ...]
    heldout: tuple[Example, ...]
    notes: tuple[str, ...] = ()

    @cached_property
    def content_hash(self) -> str:
        """sha256 (hex) of name, family and every row in order; the notes do not count."""
        digest = hashlib.sha256()
        for part in (self.name, self.family, len(self.train)):
            digest.update(json.dumps(part).encode() + b"\n")
        for example in self.train + self.heldout:
            row = (example.prompt, example.response, example.messages)
            digest.update(json.dumps(row).encode() + b"\n")
        return digest.hexdigest()


def join(prompt: str, response: str) -> Example:
    """An example whose prompt ends where the response begins: one newline is added to the prompt,
    unless it is empty or one of the two already brings white space to the seam."""
    seamless = not prompt or prompt[-1].isspace() or response[:1].isspace()
    return Example(prompt if seamless else prompt + "\n", response)
