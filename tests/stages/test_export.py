"""Exports for other trainers: the right examples and counts, in formats that they read."""

import json
import re
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml

from taskpgm.stages.context import Context
from taskpgm.stages.export import Exports, shuffled
from taskpgm.stages.export_formats import FORMATS, lines
from taskpgm.stages.run_models import drawn
from taskpgm.tasks import Example
from tests.stages.launching import launch
from tests.stages.tiny_config import get_config
from tests.stages.trainer_schemas import AXOLOTL, LLAMA_FACTORY, NEMO, OPEN_INSTRUCT, misfits

CHAT = Example(
    "",
    "",
    (
        ("system", "be brief"),
        ("user", "a?"),
        ("assistant", "b"),
        ("user", "c?"),
        ("assistant", "d"),
    ),
)
PLAIN = Example("ä prompt\n", "a response")


def loaded(path) -> datasets.Dataset:
    """A file as `datasets` reads it, without its cache."""
    return datasets.load_dataset(
        "json", data_files=str(path), split="train", cache_dir=str(path.parent / "cache")
    )


@pytest.fixture(scope="module")
def exported(finished, tasks_folder, tmp_path_factory):
    """A finished run, exported in every format afterwards."""
    import shutil

    workdir = shutil.copytree(finished, tmp_path_factory.mktemp("export") / "run")
    options = [f"--config.tasks.source={tasks_folder}", f"--config.export={tuple(FORMATS)}"]
    said = launch(workdir, *options, "--stage=export").stdout
    assert "jsonl, trl, axolotl" in said
    assert "done already" in launch(workdir, *options, "--stage=export").stdout.splitlines()[-2]
    return workdir


@pytest.mark.pipeline
def test_counts_are_exact_and_the_order_is_mixed(exported):
    weights = json.loads((exported / "mixture" / "weights.json").read_text())
    for name, record in weights["mixtures"].items():
        rows = loaded(exported / "mixture" / f"{name}.jsonl")
        counts = dict(zip(weights["tasks"], record["counts"], strict=True))
        assert Counter(rows["task"]) == Counter({k: v for k, v in counts.items() if v})
        assert len(rows) == 24
        runs = 1 + sum(a != b for a, b in zip(rows["task"], rows["task"][1:], strict=False))
        assert runs > sum(count > 0 for count in counts.values())  # not task after task


@pytest.mark.pipeline
def test_they_are_the_examples_that_the_model_was_trained_on(exported, tasks_folder):
    config = get_config()
    config.tasks.source = str(tasks_folder)
    context = Context(config, exported, [])
    weights = json.loads((exported / "mixture" / "weights.json").read_text())
    expected = [
        (task.name, example.prompt, example.response)
        for task, count in zip(context.tasks, weights["mixtures"]["uniform"]["counts"], strict=True)
        for example in drawn(context, task, count, seed=0)
    ]
    rows = loaded(exported / "mixture" / "uniform.jsonl")
    assert sorted(expected) == sorted(
        zip(rows["task"], rows["prompt"], rows["response"], strict=True)
    )
    again = [
        row[0] for row in shuffled(context, "uniform", weights["mixtures"]["uniform"]["counts"])
    ]
    assert again == list(rows["task"])


COLUMNS = {
    "trl": ["prompt", "completion"],
    "axolotl": ["prompt", "response"],
    "llama-factory": ["prompt", "response"],
    "open-instruct": ["messages"],
    "nemo": ["input", "output"],
}


@pytest.mark.pipeline
@pytest.mark.parametrize("form", COLUMNS)
def test_each_format_loads_and_names_its_file(exported, form):
    folder = exported / "mixture" / "export" / form
    rows = loaded(folder / "uniform.jsonl")
    assert rows.column_names == COLUMNS[form] and len(rows) == 24
    names = (
        {"dataset_info.json"} if form == "llama-factory" else {"uniform.yaml", "taskpgm-pmi.yaml"}
    )
    assert names <= {path.name for path in folder.iterdir()}


def section(exported, form):
    return yaml.safe_load((exported / "mixture/export" / form / "uniform.yaml").read_text())


@pytest.mark.pipeline
def test_trl_loads_it(exported):
    (source,) = section(exported, "trl")["datasets"]
    path, columns = source.pop("path"), source.pop("columns")
    rows = datasets.load_dataset(path, **source, cache_dir=str(exported / "cache"))
    assert rows.column_names == columns and len(rows) == 24
    scripts = pytest.importorskip("trl.scripts.utils", reason="trl is not installed")
    given = scripts.DatasetConfig(path=path, columns=columns, **source)
    mixed = scripts.get_dataset(scripts.DatasetMixtureConfig(datasets=[given]))
    assert mixed["train"].column_names == columns and len(mixed["train"]) == 24


@pytest.mark.pipeline
def test_the_others_name_rows_that_are_there(exported):
    (source,) = section(exported, "axolotl")["datasets"]
    assert loaded_rows(source["path"]) == 24
    folder = exported / "mixture/export/llama-factory"
    info = json.loads((folder / "dataset_info.json").read_text())
    weights = json.loads((exported / "mixture" / "weights.json").read_text())
    assert set(info) == set(weights["mixtures"])
    for entry in info.values():
        rows = loaded(folder / entry["file_name"])
        assert set(entry["columns"].values()) == set(rows.column_names)
    path, _ = section(exported, "open-instruct")["dataset_mixer_list"]
    assert loaded_rows(path) == 24
    train = section(exported, "nemo")["model"]["data"]["train_ds"]
    assert loaded_rows(train["file_names"][0]) == 24


def written(form: str, chat: bool, name: str = "a"):
    """What a format writes beside its rows, and one of them."""
    (content,) = FORMATS[form].config(Path(f"/runs/{name}.jsonl"), chat, name).values()
    (line, *_) = lines(form, [("t", "f", CHAT if chat else PLAIN)], chat)
    return yaml.safe_load(yaml.safe_dump(content)), json.loads(line)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("form", ["axolotl", "open-instruct", "nemo", "llama-factory"])
def test_every_key_is_one_of_the_trainers_own(form, chat):
    schemas = {"axolotl": AXOLOTL, "open-instruct": OPEN_INSTRUCT, "nemo": NEMO}
    content, _ = written(form, chat)
    if form == "llama-factory":
        (content,) = content.values()
    assert misfits(content, schemas.get(form, LLAMA_FACTORY)) == []
    spoilt = {**content, "dataset_mixr": 1}
    assert misfits(spoilt, schemas.get(form, LLAMA_FACTORY)) == [".dataset_mixr: no such key"]


def test_what_axolotl_makes_of_a_row():
    content, row = written("axolotl", chat=False)
    (source,) = content["datasets"]
    assert source["ds_type"] == "json" and source["split"] == "train"
    # user_defined.py: without an input, no_input_format; the system's words only if there are any.
    kind = source["type"]
    prompt = kind["no_input_format"].format(instruction=row[kind["field_instruction"]])
    assert (prompt, row[kind["field_output"]]) == (PLAIN.prompt, PLAIN.response)
    assert "input" not in row and not kind["system_prompt"]
    (source,) = written("axolotl", chat=True)[0]["datasets"]
    assert source["type"] == "chat_template" and source["field_messages"] == "messages"


def test_what_llama_factory_makes_of_a_row():
    # converter.py: tags of every role that occurs, then user and assistant in turn.
    (entry,), row = (
        written("llama-factory", chat=True)[0].values(),
        written("llama-factory", True)[1],
    )
    tags = entry["tags"]
    roles = [turn[tags["role_tag"]] for turn in row[entry["columns"]["messages"]]]
    assert roles.pop(0) == tags["system_tag"]
    assert roles == [tags["user_tag"], tags["assistant_tag"]] * (len(roles) // 2)
    # data_args.py: names in `dataset` are separated by commas, and stripped.
    for name in ("closed-form-pmi:r=158,psd=shift", "taskpgm-pmi@budget=50,ratio=4"):
        ((key, entry),) = written("llama-factory", False, name)[0].items()
        assert "," not in key and key == key.strip() and entry["file_name"] == f"{name}.jsonl"


def test_what_open_instruct_makes_of_its_list():
    content, _ = written("open-instruct", chat=False)
    path, amount = content["dataset_mixer_list"]
    assert path.endswith(".jsonl") and content["dataset_mixer_list_splits"] == ["train"]
    assert "." in amount and float(amount) == 1.0  # without a point it would be one example


def test_what_nemo_makes_of_a_row():
    train = written("nemo", chat=False)[0]["model"]["data"]["train_ds"]
    assert len(train["file_names"]) == len(train["concat_sampling_probabilities"]) == 1
    keys = re.findall("{(.*?)}", train["prompt_template"])
    assert train["prompt_template"].endswith(f"{{{train['label_key']}}}")
    assert train["truncation_field"] in keys and set(keys) <= set(written("nemo", False)[1])
    content, row = written("nemo", chat=True)
    assert content["model"]["data"]["chat"] is True
    assert row["mask"] in {turn["from"] for turn in row["conversations"]} and "system" in row


def loaded_rows(path) -> int:
    return len(open_lines(path))


def open_lines(path) -> list[str]:
    with open(path, encoding="utf-8") as file:
        return file.readlines()


@pytest.mark.parametrize("form", FORMATS)
def test_one_chat_makes_all_rows_chats(form, tmp_path):
    given = [("t", "f", PLAIN), ("u", "g", CHAT)]
    path = tmp_path / "it.jsonl"
    path.write_bytes(b"".join(lines(form, given, chat=True)))
    rows = loaded(path)
    assert len(rows) == 2
    if form == "nemo":
        assert [row["value"] for row in rows[0]["conversations"]] == ["ä prompt\n", "a response"]
        assert rows[1]["system"] == "be brief" and rows[1]["mask"] == "User"
        speakers = [row["from"] for row in rows[1]["conversations"]]
        assert speakers == ["User", "Assistant", "User", "Assistant"]
    else:
        assert [turn["role"] for turn in rows[0]["messages"]] == ["user", "assistant"]
        assert [turn["content"] for turn in rows[1]["messages"]] == [
            text for _, text in CHAT.messages
        ]


def test_a_plain_row_is_told_as_it_is():
    (line,) = lines("trl", [("t", "f", PLAIN)], chat=False)
    assert json.loads(line) == {"prompt": "ä prompt\n", "completion": "a response"}


def test_a_matrix_has_no_examples(tmp_path):
    from taskpgm.stages import run

    np.save(tmp_path / "S.npy", np.eye(3))
    config = get_config()
    config.affinity.matrix, config.export = str(tmp_path / "S.npy"), ("jsonl",)
    with pytest.raises(ValueError, match="export=.*needs the tasks' examples"):
        run(config, str(tmp_path / "run"))
    config.export = ("json",)
    with pytest.raises(ValueError, match="export=.*has to be some of jsonl, trl"):
        run(config, str(tmp_path / "run"))


def test_every_file_of_a_format_has_a_place(tmp_path):
    exports = Exports(tmp_path / "mixture" / "export", "", Context(get_config(), tmp_path, []))
    assert exports.path("jsonl", "a") == tmp_path / "mixture" / "a.jsonl"
    assert exports.path("trl", "a") == tmp_path / "mixture" / "export" / "trl" / "a.jsonl"
