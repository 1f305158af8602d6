"""A mixture's examples as the files that other trainers read: rows, and the configuration of each.

Every format has the same rows in the same order. Where one task is a chat all rows are, so that a
file has one shape: a prompt becomes what the user says, a response what the assistant answers.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskpgm.tasks import Example

Row = dict[str, Any]


@dataclass(frozen=True)
class ExportFormat:
    """How a trainer takes a mixture.

    Attributes:
      plain, chat: an example as a row of its file.
      config: from the file, whether it holds chats, and the mixture's name to what is written
        beside it: {file name: content}. A file of the same name is shared by all mixtures, and
        the content of each is joined.
    """

    plain: Callable[[Example], Row]
    chat: Callable[[Example], Row]
    config: Callable[[Path, bool, str], Mapping[str, Any]] = lambda path, chat, name: {}


def messages(example: Example) -> list[dict[str, str]]:
    """The turns of an example."""
    turns = example.messages
    if turns is None:
        turns = (("user", example.prompt), ("assistant", example.response))
    return [{"role": role, "content": text} for role, text in turns]


def as_messages(example: Example) -> Row:
    return {"messages": messages(example)}


# --- TRL: columns of SFTTrainer, and the section `datasets` of `trl sft --config` ----------------
def trl_config(path: Path, chat: bool, name: str) -> Mapping[str, Any]:
    columns = ["messages"] if chat else ["prompt", "completion"]
    source = {"path": "json", "data_files": str(path), "split": "train", "columns": columns}
    return {f"{name}.yaml": {"datasets": [source]}}


# --- axolotl: the section `datasets` of its YAML --------------------------------------------------
def axolotl_config(path: Path, chat: bool, name: str) -> Mapping[str, Any]:
    source: Row = {"path": str(path), "ds_type": "json", "split": "train"}
    if chat:
        source |= {"type": "chat_template", "field_messages": "messages"}
        source |= {"message_property_mappings": {"role": "role", "content": "content"}}
    else:  # the prompt as it is: nothing stands between it and the response
        source["type"] = {
            "system_prompt": "",
            "field_instruction": "prompt",
            "field_output": "response",
            "format": "{instruction}",
            "no_input_format": "{instruction}",
        }
    return {f"{name}.yaml": {"datasets": [source], "train_on_inputs": False}}


# --- LLaMA-Factory: dataset_info.json of a `dataset_dir` -----------------------------------------
def llama_factory_config(path: Path, chat: bool, name: str) -> Mapping[str, Any]:
    entry: Row = {"file_name": path.name}
    if chat:
        entry |= {"formatting": "sharegpt", "columns": {"messages": "messages"}}
        entry["tags"] = {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "system_tag": "system",
        }
    else:
        entry |= {"formatting": "alpaca", "columns": {"prompt": "prompt", "response": "response"}}
    # Its `dataset` is a list of names between commas, so a name has none.
    return {"dataset_info.json": {name.replace(",", "_"): entry}}


# --- open-instruct: messages, and the list of files with the share of each ----------------------
def open_instruct_config(path: Path, chat: bool, name: str) -> Mapping[str, Any]:
    return {
        f"{name}.yaml": {
            "dataset_mixer_list": [str(path), "1.0"],
            "dataset_mixer_list_splits": ["train"],
        }
    }


# --- NeMo: rows of its SFT data sets, and the section `model.data.train_ds` of the configuration
# of megatron_gpt_finetuning.py (up to 2.6). `llm.FineTuningDataModule` reads the same rows.
def nemo_chat(example: Example) -> Row:
    """NeMo's conversations: the system's words apart, and the speaker whose words do not count."""
    turns = messages(example)
    system = "\n".join(turn["content"] for turn in turns if turn["role"] == "system")
    return {
        "system": system,
        "mask": "User",
        "conversations": [
            {
                "from": "Assistant" if turn["role"] == "assistant" else "User",
                "value": turn["content"],
            }
            for turn in turns
            if turn["role"] != "system"
        ],
    }


def nemo_config(path: Path, chat: bool, name: str) -> Mapping[str, Any]:
    section: Row = {"file_names": [str(path)], "concat_sampling_probabilities": [1.0]}
    if chat:
        model = {"data": {"chat": True, "train_ds": section}}
    else:
        section |= {"label_key": "output", "truncation_field": "input"}
        section["prompt_template"] = "{input}{output}"
        model = {"answer_only_loss": True, "data": {"train_ds": section}}
    return {f"{name}.yaml": {"model": model}}


FORMATS: dict[str, ExportFormat] = {
    "jsonl": ExportFormat(lambda x: {"prompt": x.prompt, "response": x.response}, as_messages),
    "trl": ExportFormat(
        lambda x: {"prompt": x.prompt, "completion": x.response}, as_messages, trl_config
    ),
    "axolotl": ExportFormat(
        lambda x: {"prompt": x.prompt, "response": x.response}, as_messages, axolotl_config
    ),
    "llama-factory": ExportFormat(
        lambda x: {"prompt": x.prompt, "response": x.response}, as_messages, llama_factory_config
    ),
    "open-instruct": ExportFormat(as_messages, as_messages, open_instruct_config),
    "nemo": ExportFormat(
        lambda x: {"input": x.prompt, "output": x.response}, nemo_chat, nemo_config
    ),
}


def lines(name: str, drawn: Sequence[tuple[str, str, Example]], chat: bool) -> list[bytes]:
    """The rows of a format as lines of JSON; `jsonl` also has the task and family of each."""
    form = FORMATS[name]
    found = []
    for task, family, example in drawn:
        row = form.chat(example) if chat else form.plain(example)
        if name == "jsonl":
            row = {"task": task, "family": family, **row}
        found.append((json.dumps(row, ensure_ascii=False) + "\n").encode())
    return found
