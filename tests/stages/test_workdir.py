"""Keys, marks and atomic files."""

import json

import pytest

from taskpgm.stages import workdir as wd


def test_a_mark_is_the_last_act(tmp_path):
    folder = tmp_path / "artefact"
    wd.begin(folder, "key")
    assert not wd.is_done(folder, "key")
    wd.mark_done(folder, "key", seconds=1)
    assert wd.is_done(folder, "key")
    assert not wd.is_done(folder, "other")


def test_what_an_interrupted_run_left_is_kept_and_what_another_made_is_not(tmp_path):
    folder = tmp_path / "artefact"
    wd.begin(folder, "key")
    (folder / "checkpoint").write_text("half way")
    wd.begin(folder, "key")
    assert (folder / "checkpoint").exists()
    wd.begin(folder, "other")
    assert not (folder / "checkpoint").exists()


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.json"
    wd.write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        wd.write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "done.json").write_text('{"key": ')
    with pytest.raises(ValueError, match="done.json is damaged .*: remove .*done.json and start"):
        wd.is_done(tmp_path, "key")


def test_the_way_out_of_damage_is_the_mark_and_it_leads_out(tmp_path):
    folder = tmp_path / "artefact"
    wd.begin(folder, "key")
    (folder / "checkpoint").write_text("whole")
    (folder / "it.json").write_text("{")
    wd.mark_done(folder, "key")
    for _ in range(2):  # damaged, then missing
        with pytest.raises(ValueError, match=rf"it.json is .*: remove {folder}/done.json and"):
            wd.read_json(folder / "it.json")
        (folder / "it.json").unlink(missing_ok=True)
    (folder / wd.MARK).unlink()
    wd.begin(folder, "key")
    assert not wd.is_done(folder, "key")
    assert (folder / "checkpoint").exists()


def test_the_way_out_of_a_file_without_a_mark_is_the_file(tmp_path):
    (tmp_path / "tasks.json").write_text("{")
    with pytest.raises(ValueError, match=rf"damaged .*: remove {tmp_path}/tasks.json and start"):
        wd.read_json(tmp_path / "tasks.json")


def test_a_damaged_key_does_not_hold_up_one_who_begins(tmp_path):
    folder = tmp_path / "artefact"
    wd.begin(folder, "key")
    (folder / "key.json").write_text("{")
    with pytest.raises(ValueError, match=rf"key.json is damaged .*: remove {folder}/key.json and"):
        wd.begin(folder, "key")
    wd.mark_done(folder, "key")
    wd.begin(folder, "other")
    assert wd.read_json(folder / "key.json") == {"key": "other"}


def test_differing_keys_are_leaves():
    old = {"a": {"b": 1, "c": (1, 2)}, "d": 3}
    assert wd.differing_keys(old, {"a": {"b": 2, "c": [1, 2]}, "d": 3}) == [("a.b", 1, 2)]


def test_digest_is_stable():
    # A changed digest makes every workdir in the world stale: change it knowingly.
    assert wd.digest("a", {"b": 1, "a": [1.5, None]}) == wd.digest("a", {"a": [1.5, None], "b": 1})
    assert wd.digest("a") != wd.digest("b")


def test_fingerprint_sees_content_and_names(tmp_path):
    (tmp_path / "x").write_bytes(b"1" * 10)
    before = wd.fingerprint(tmp_path, ["x"])
    (tmp_path / "x").write_bytes(b"1" * 9 + b"2")
    assert wd.fingerprint(tmp_path, ["x"]) != before
