"""Targets: judged and not mixed, so without a training split."""

import json

import pytest

from taskpgm.tasks import load_targets, load_tasks


def write(path, name, rows=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"prompt": f"{name} {i}", "response": str(i)}) for i in range(rows)]
    path.write_text("\n".join(lines) + "\n")


def prompts(rows):
    return {row.prompt.strip() for row in rows}


@pytest.mark.parametrize(
    "files, heldout, test",
    [
        ({"t.jsonl": "a"}, None, None),
        ({"t.test.jsonl": "a"}, None, None),
        ({"t.heldout.jsonl": "a"}, None, None),
        ({"t.heldout.jsonl": "a", "t.test.jsonl": "b"}, "a", "b"),
        ({"t.jsonl": "a", "t.test.jsonl": "b"}, "a", "b"),
        ({"t.jsonl": "a", "t.heldout.jsonl": "b"}, "b", "a"),
        ({"t.jsonl": "c", "t.heldout.jsonl": "a", "t.test.jsonl": "b"}, "a", "b"),
    ],
)
def test_rows_are_dealt_to_the_two_splits_that_targets_have(tmp_path, files, heldout, test):
    for name, text in files.items():
        write(tmp_path / "targets" / name, text)
    (target,) = load_targets(tmp_path / "targets")
    assert target.target and target.name == "t" and target.train == ()
    if heldout is None:
        assert len(target.heldout) == len(target.test) == 4
        assert any("4 of its 8 rows decide" in note for note in target.notes)
    else:
        assert prompts(target.heldout) == {f"{heldout} {i}" for i in range(8)}
        assert prompts(target.test) == {f"{test} {i}" for i in range(8)}
    assert not prompts(target.heldout) & prompts(target.test)


def test_a_prompt_in_both_splits_stays_where_it_judges(tmp_path):
    write(tmp_path / "t.heldout.jsonl", "a", 8)
    write(tmp_path / "t.test.jsonl", "a", 3)
    (target,) = load_targets(tmp_path)
    assert len(target.heldout) == 5 and len(target.test) == 3
    assert any("3 of 8 held-out rows dropped" in note for note in target.notes)


def test_a_manifest_lists_targets_beside_tasks(tmp_path):
    for name in ("one", "two", "aim"):
        write(tmp_path / f"{name}.jsonl", name, 30)
    path = tmp_path / "all.yaml"
    path.write_text(
        "defaults: {heldout_limit: 2}\n"
        "tasks: [{source: one.jsonl}, {source: two.jsonl}]\n"
        "targets: [{source: aim.jsonl, family: mine, test_limit: 3}]\n"
    )
    tasks = load_tasks(path)
    assert [(t.name, t.target) for t in tasks] == [("one", False), ("two", False), ("aim", True)]
    assert tasks[2].family == "mine" and len(tasks[2].heldout) == 2 and len(tasks[2].test) == 3
    assert all(t.train for t in tasks[:2])
    # As targets, all of it is judged.
    assert all(t.target and not t.train for t in load_targets(path))
    path.write_text("tasks: [{source: one.jsonl}]\ntargets: [{source: aim.jsonl}]\n")
    with pytest.raises(ValueError, match="only one task"):
        load_tasks(path)
    path.write_text("tasks: [{source: one.jsonl}, {source: two.jsonl}]\ntargets: [{sorce: a}]\n")
    with pytest.raises(ValueError, match="target 1: unknown key 'sorce'"):
        load_tasks(path)
    path.write_text("tasks: [{source: one.jsonl}, {source: two.jsonl}]\ntargets: []\n")
    with pytest.raises(ValueError, match="`targets` must be a list"):
        load_tasks(path)


def test_a_target_too_small_to_cut_is_refused(tmp_path):
    write(tmp_path / "t.jsonl", "a", 1)
    with pytest.raises(ValueError, match="too few to cut off"):
        load_targets(tmp_path)
