"""The paper's list of tasks, read from stand-ins that have the columns of the hub's data sets."""

import re
from pathlib import Path

import datasets
import pytest

from taskpgm.tasks import load_tasks

MANIFEST = Path(__file__).parents[2] / "configs" / "flan_mix.yaml"
COUNTS = {"t0": 193, "flan2021": 70, "cot": 18, "tulu": 18, "superglue": 17}


def rows_of(number: int, **values):
    """`number` rows; in a text, # stands for the row's number."""
    return [
        {k: v.replace("#", str(i)) if isinstance(v, str) else v for k, v in values.items()}
        for i in range(number)
    ]


def submix(name: str, count: int) -> datasets.DatasetDict:
    """A collection of the Flan 2022 release with so many tasks."""
    more = {"task_source": "P3", "template_type": "zs_opt"}
    rows = [
        {"inputs": f"{k} {i}?", "targets": f"a{i}", "task_name": f"{name}/{k}:1.0.0", **more}
        for k in range(count)
        for i in range(12)
    ]
    return datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)})


def tulu(count: int) -> datasets.DatasetDict:
    rows = [
        {
            "id": f"{k}_{i}",
            "messages": [
                {"content": f"{k} {i}?", "role": "user"},
                {"content": f"a{i}", "role": "assistant"},
            ],
            "source": f"allenai/tulu_{k}",
        }
        for k in range(count)
        for i in range(12)
    ]
    return datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)})


def labelled(names, splits=("train", "validation", "test"), **texts) -> datasets.DatasetDict:
    """Classified texts; where there are other splits too, the test split hides its labels."""
    found = {}
    for split in splits:
        rows = rows_of(12, **{k: f"{split} {k} #" for k in texts}, label=0)
        if split == "test" and len(splits) > 1:
            rows = [{**row, "label": -1} for row in rows]
        kind = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
        kinds = {**{k: datasets.Value("string") for k in texts}, "label": kind}
        found[split] = datasets.Dataset.from_list(rows, datasets.Features(kinds))
    return datasets.DatasetDict(found)


PAIR = {"sentence1": "", "sentence2": ""}
NLI = {"premise": "", "hypothesis": ""}
FOLLOWS = ["entailment", "not_entailment"]
CHOICE = {"premise": "", "choice1": "", "choice2": "", "question": ""}
GAP = {"sentence": "a _ b #", "option1": "x", "option2": "y", "answer": "2"}
SUBJ = {"text": "t#", "label": 1, "label_text": "subjective"}
# By name and configuration on the hub: columns, classes and splits as on the cards.
HUB = {
    ("DataProvenanceInitiative/t0_submix_original", None): lambda: submix("t0", 193),
    ("DataProvenanceInitiative/flan2021_submix_original", None): lambda: submix("flan", 70),
    ("DataProvenanceInitiative/cot_submix_original", None): lambda: submix("cot", 18),
    ("allenai/tulu-3-sft-mixture", None): lambda: tulu(18),
    ("aps/super_glue", "boolq"): lambda: labelled(["False", "True"], question="", passage=""),
    ("aps/super_glue", "copa"): lambda: labelled(["choice1", "choice2"], **CHOICE),
    ("aps/super_glue", "rte"): lambda: labelled(FOLLOWS, **NLI),
    ("aps/super_glue", "axg"): lambda: labelled(FOLLOWS, ("test",), **NLI),
    ("aps/super_glue", "axb"): lambda: labelled(FOLLOWS, ("test",), **PAIR),
    ("nyu-mll/glue", "wnli"): lambda: labelled(["not_entailment", "entailment"], **PAIR),
    ("nyu-mll/glue", "qqp"): lambda: labelled(
        ["not_duplicate", "duplicate"], question1="", question2=""
    ),
    ("nyu-mll/glue", "mrpc"): lambda: labelled(["not_equivalent", "equivalent"], **PAIR),
    ("nyu-mll/glue", "cola"): lambda: labelled(["unacceptable", "acceptable"], sentence=""),
    ("nyu-mll/glue", "sst2"): lambda: labelled(["negative", "positive"], sentence=""),
    ("nyu-mll/glue", "qnli"): lambda: labelled(FOLLOWS, question="", sentence=""),
    ("jxm/mpqa", None): lambda: labelled(None, ("train", "dev"), sentence=""),
    ("SetFit/SentEval-CR", None): lambda: labelled(None, ("train",), text=""),
    ("cornell-movie-review-data/rotten_tomatoes", None): lambda: labelled(["neg", "pos"], text=""),
    ("SetFit/subj", None): lambda: datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(rows_of(12, **SUBJ))}
    ),
    ("google-research-datasets/paws-x", "en"): lambda: labelled(["0", "1"], **PAIR),
    ("Muennighoff/xwinograd", "en"): lambda: datasets.DatasetDict(
        {"test": datasets.Dataset.from_list(rows_of(12, **GAP))}
    ),
}


def load(made):
    """The manifest's tasks out of stand-ins for the hub, and what was asked of it: (name,
    configuration) -> revision."""
    asked = {}

    def stand_in(name, config=None, revision=None):
        asked[name, config] = revision
        return made[name, config]()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_dataset", stand_in)
        return load_tasks(MANIFEST), asked


@pytest.fixture(scope="module")
def loaded():
    return load(HUB)


def test_it_is_the_papers_316_tasks(loaded):
    tasks, asked = loaded
    found = {family: sum(t.family == family for t in tasks) for family in COUNTS}
    assert found == COUNTS and len(tasks) == len({task.name for task in tasks}) == 316
    assert not any("are expected" in note for task in tasks for note in task.notes)
    assert set(asked) == set(HUB)
    pinned = {name: revision for (name, _), revision in asked.items() if revision}
    assert all(re.fullmatch("[0-9a-f]{40}", revision) for revision in pinned.values())
    assert {"aps/super_glue", "nyu-mll/glue", "allenai/tulu-3-sft-mixture"} < set(pinned)


@pytest.mark.parametrize(
    ("name", "prompt", "response"),
    [
        ("boolq", "passage 0\nQuestion: train question 0?\nAnswer yes or no: ", "no"),
        ("copa", "premise 0\nWhat is the train question 0?\n1. ", "1"),
        ("axg", "premise 0\nDoes it follow that test hypothesis 0?\nAnswer: ", "yes"),
        ("wnli", "sentence1 0\nDoes it follow that train sentence2 0?\nAnswer: ", "no"),
        ("mpqa", "sentence 0\nPositive or negative?\nAnswer: ", "negative"),
        ("subj", "t0\nSubjective or objective?\nAnswer: ", "subjective"),
        ("pawsx", "2. train sentence2 0\nDo both say the same?\nAnswer: ", "no"),
        ("xwinograd", "gap?\n1. x\n2. y\nAnswer: ", "2"),
    ],
)
def test_a_row_of_each_kind(loaded, name, prompt, response):
    task = next(task for task in loaded[0] if task.name == name)
    rows = (*task.train, *task.heldout, *task.test)
    assert any(prompt in row.prompt and row.response == response for row in rows)


def test_other_numbers_of_tasks_are_one_line():
    others = {
        ("DataProvenanceInitiative/t0_submix_original", None): lambda: submix("t0", 190),
        ("allenai/tulu-3-sft-mixture", None): lambda: tulu(19),
    }
    notes = {note for task in load(HUB | others)[0] for note in task.notes}
    (said,) = [note for note in notes if "are expected" in note]
    assert said == (
        f"{MANIFEST}: 190 tasks of t0 where 193 are expected, 19 tasks of tulu where 18 are "
        "expected"
    )


@pytest.mark.parametrize("bad", ["[t0]", "{t0: many}", "{t0: -1}"])
def test_expected_is_a_mapping_to_numbers(tmp_path, bad):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "p", "response": "r"}\n' * 3)
    path = tmp_path / "m.yaml"
    path.write_text(f"expected: {bad}\ntasks:\n  - source: rows.jsonl\n")
    with pytest.raises(ValueError, match="`expected` must be a mapping of families to numbers"):
        load_tasks(path)


def test_a_revision_is_of_the_hub(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "p", "response": "r"}\n' * 3)
    path = tmp_path / "m.yaml"
    path.write_text("tasks:\n  - source: rows.jsonl\n    revision: main\n")
    with pytest.raises(ValueError, match="task 1: `revision` is of a data set on the hub"):
        load_tasks(path)
