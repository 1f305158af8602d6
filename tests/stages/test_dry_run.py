"""`--dry_run` says what would stop a run and still gives hours and memory; nothing is fetched."""

import json
import re
import sys
from pathlib import Path

import pytest

from taskpgm import models, stages
from taskpgm.evaluation import harness_tokens, look_for_data
from taskpgm.tasks import corpus
from tests.stages.tiny_config import get_config

pytestmark = pytest.mark.usefixtures("one_tokenizer")
COSTLY = ("base", "adapters", "affinity", "runs", "evaluation")
TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
{more}
"""


def config_of(folder, changes=()):
    config = get_config()
    config.tasks.source = str(folder)
    config.mesh.data = -1
    config.update_from_flattened_dict(dict(changes))
    return config


def planned(capsys, folder, workdir, changes=(), device="h100x1") -> tuple[str, list[str]]:
    """The table, and what does not fit; every stage that costs something has hours and memory."""
    config = config_of(folder, changes)
    stages.run(config, str(workdir), dry_run=True, device=device)
    said = capsys.readouterr().out
    for stage in COSTLY[1:] if config.base.path else COSTLY:
        line = next(x for x in said.splitlines() if x.startswith(stage))
        assert re.search(r"\d h ", line) and re.search(r"\d [KMGT]?i?B ", line), line
    return said, [x for x in said.splitlines() if x.startswith("does not fit: ")]


STOPS = {
    "budget": ({"mixture.budget": 10**6}, "mixture.budget=1000000 is larger"),
    "max_epochs": ({"mixture.max_epochs": 0.1}, "max_epochs=0.1"),
    "mesh": ({"mesh.fsdp": 3}, "mesh.fsdp=3"),
    "base is larger than the device": (
        {"embedded.hidden_size": 65536, "embedded.num_layers": 16},
        "embedded.batch_size or tasks.length",
    ),
    "rows that do not divide": ({"train.accumulate": 3}, "train.batch_size=4"),
    "answers without room": ({"evaluation.max_new_tokens": 48}, "evaluation.max_new_tokens=48"),
    "more tasks than there are": ({"compare": ("select-pmi:k=99",)}, "select-pmi:k=99"),
    "no such row": ({"compare": ("unifrom",)}, "did you mean 'uniform'"),
    "importance": ({"mixture.importance": "nowhere.json"}, "mixture.importance=nowhere.json"),
    "a kernel of TPUs": ({"affinity.kernel": "pallas"}, "affinity.kernel='pallas'"),
    "attention of TPUs": (
        {"base.attention": "splash", "tasks.length": 128},
        "base.attention='splash'",
    ),
    "little memory": ({"affinity.memory": 1e-6}, "affinity.memory is 0.0 MiB"),
}


@pytest.mark.parametrize(("changes", "named"), STOPS.values(), ids=STOPS)
def test_what_would_stop_a_run_is_said(changes, named, tasks_folder, tmp_path, capsys):
    config = config_of(tasks_folder, changes)
    stages.run(config, str(tmp_path / "run"), dry_run=True, device="h100x8")
    problems = [x for x in capsys.readouterr().out.splitlines() if x.startswith("does not fit: ")]
    assert any(named in line for line in problems), problems
    with pytest.raises((ValueError, OSError)):
        stages.run(config, str(tmp_path / "run"))  # eight devices here as well, but of a CPU
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_cannot_be_used(tasks_folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    _, problems = planned(capsys, tasks_folder, tmp_path / "file" / "below")
    assert any("--workdir=" in line and "is a file" in line for line in problems)
    other = tmp_path / "other"
    (other / "base").mkdir(parents=True)
    _, problems = planned(capsys, tasks_folder, other)
    assert any("choose an empty --workdir" in line for line in problems)


def test_rows_that_some_devices_only_repeat(tasks_folder, tmp_path, capsys):
    """Their hours are those of the devices that do something of their own."""
    one, _ = planned(capsys, tasks_folder, tmp_path / "run", device="v5e-1")
    many, problems = planned(capsys, tasks_folder, tmp_path / "run", device="v5e-64")
    for name, key in (("runs", "train.batch_size"), ("adapters", "adapters.batch_size")):
        assert any(f"{name}: " in x and key in x for x in problems), problems
        hours = [
            next(re.search(r"([\d.]+) h ", x)[1] for x in said.splitlines() if x.startswith(name))
            for said in (one, many)
        ]
        assert hours[0] == hours[1]


# --- Benchmarks ----------------------------------------------------------------------------------
def own_task(folder, name, file, kind="multiple_choice", more='doc_to_choice: ["a", "b"]'):
    folder.mkdir(exist_ok=True)
    text = TASK.format(name=name, file=file, kind=kind, more=more)
    (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.fixture
def no_loading(monkeypatch):
    pytest.importorskip("lm_eval", reason="lm_eval is not installed (optional extra: eval)")
    from lm_eval.tasks import TaskManager

    def refuse(*_):
        raise AssertionError("a plan loads no data of benchmarks")

    monkeypatch.setattr(TaskManager, "load", refuse)


def test_benchmarks_whose_data_are_not_there(no_loading, tasks_folder, tmp_path, capsys):
    rows = [{"question": f"which letter is number {i}?", "answer": i % 2} for i in range(40)]
    (tmp_path / "here.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    folder = own_task(tmp_path / "own", "here", tmp_path / "here.jsonl")
    own_task(folder, "gone", tmp_path / "gone.jsonl")
    (folder / "both.yaml").write_text("group: both\ntask: [here, gone]\n")
    for names, said in (
        (("here",), None),
        (("gone",), "gone.jsonl"),
        (("both",), "gone.jsonl"),
        (("here", "gone"), "gone.jsonl"),
        (("nobody",), "lm_eval has no task 'nobody'"),
    ):
        own = "" if names == ("nobody",) else str(folder)
        changes = {"evaluation.harness": names, "evaluation.harness_path": own}
        text, problems = planned(capsys, tasks_folder, tmp_path / "run", changes)
        found = [line for line in problems if "evaluation.harness" in line]
        assert bool(found) == bool(said) and all(said in line for line in found), (names, found)
        assert ("not counted" in text) == (names != ("here",) and names != ("both",)), text


def test_benchmarks_of_a_hub_that_cannot_be_had(no_loading, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("mmlu", "hellaswag", "gsm8k"):
        (problem,) = look_for_data([name])
        assert f"evaluation.harness: {name!r}: its data cannot be had" in str(problem)


def test_no_harness_is_installed(monkeypatch, tasks_folder, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    changes = {"evaluation.harness": ("mmlu",)}
    text, problems = planned(capsys, tasks_folder, tmp_path / "run", changes)
    assert any("evaluation.harness: lm_eval is not installed: pip install" in x for x in problems)
    assert "mmlu: about" in text


def test_tokens_of_benchmarks_follow_their_settings(tmp_path):
    few = harness_tokens(["mmlu"], limit=10)
    whole = harness_tokens(["mmlu"])
    assert 0 < few.read < whole.read and whole.written == 0
    assert harness_tokens(["mmlu"], num_fewshot=0).read < whole.read / 4
    assert harness_tokens(["gsm8k"]).written > 1319 * 200
    assert harness_tokens(["mine"]).unknown == ("mine",)


# --- Models --------------------------------------------------------------------------------------
def description(folder, **changes) -> Path:
    """config.json and tokenizer of a 7B model, and no weights."""
    folder.mkdir()
    tokenizer = corpus.train_tokenizer(["upper shout reverse length w"] * 20, 300)
    raw = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32000}
    raw |= {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    raw |= {"num_attention_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
    (folder / "config.json").write_text(json.dumps(raw | changes))
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("section", ["base", "proxy"])
def test_a_model_without_weights_is_planned_by_its_shapes(
    section, tasks_folder, tmp_path, capsys, monkeypatch
):
    def refuse(*_, **__):
        raise AssertionError("a plan loads no weights")

    monkeypatch.setattr(models, "load_hf", refuse)
    folder = description(tmp_path / "model")
    changes = {f"{section}.path": str(folder), "base.dtype": "bfloat16"}
    text, problems = planned(capsys, tasks_folder, tmp_path / "run", changes)
    assert any(f"{section}.path={folder}: no weights there yet" in line for line in problems)
    assert section == "proxy" or "6,738.42M parameters" in text


def test_a_base_larger_than_the_device(tasks_folder, tmp_path, capsys):
    folder = description(tmp_path / "model", num_hidden_layers=80, hidden_size=8192)
    _, problems = planned(capsys, tasks_folder, tmp_path / "run", {"base.path": str(folder)})
    for stage, key in (
        ("runs", "mesh.fsdp"),
        ("evaluation", "mesh.fsdp"),
        ("adapters", "adapters.group"),
    ):
        assert any(f"{stage}: " in x and key in x for x in problems), (stage, problems)


def test_a_model_that_the_tasks_do_not_fit_ends_the_plan_after_it_is_printed(
    tasks_folder, tmp_path, capsys
):
    """The one thing that a plan does not forgive: inputs that are wrong whatever the machine."""
    folder = description(tmp_path / "model", max_position_embeddings=32)
    with pytest.raises(ValueError, match=r"tasks.length=48: the model of base.path=.* has 32"):
        planned(capsys, tasks_folder, tmp_path / "run", {"base.path": str(folder)})
    said = capsys.readouterr().out
    assert all(re.search(rf"^{name} .*\d h ", said, re.M) for name in COSTLY[1:])
    assert "does not fit: tasks.length=48" in said


def test_a_model_that_is_nowhere(tasks_folder, tmp_path, capsys):
    config = config_of(tasks_folder, {"base.path": str(tmp_path / "nowhere")})
    with pytest.raises(FileNotFoundError, match=r"--config.base.path=.*no such model folder"):
        stages.run(config, str(tmp_path / "run"), dry_run=True)
    said = capsys.readouterr().out
    assert re.search(r"^tasks .*4 tasks", said, re.M) and "cannot be planned" in said


@pytest.mark.pipeline
def test_a_finished_workdir_is_done_part_by_part(finished, tasks_folder, capsys):
    config = config_of(tasks_folder)
    config.mesh.data = 1
    stages.run(config, str(finished), dry_run=True, device="cpu2")
    said = capsys.readouterr().out
    for stage in ("tasks", "base", "adapters", "affinity", "mixture", "runs", "evaluation"):
        assert re.search(rf"^{stage} +done ", said, re.M), said
    assert "to do: 0.0000 h" in said
