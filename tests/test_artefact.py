"""Keys, marks and atomic files."""

import json
import subprocess
import sys

import pytest

from taskpgm import artefact
from taskpgm.artefact import Artefact, read_json, remove, remove_leftovers, write_json


def test_a_mark_is_the_last_act(tmp_path):
    made = Artefact(tmp_path / "it", "key")
    made.begin()
    assert not made.is_done()
    made.finish(seconds=1)
    assert made.is_done()
    assert artefact.done_facts(made.folder) == {"key": "key", "seconds": 1}
    assert not Artefact(tmp_path / "it", "other").is_done()


def test_what_an_interrupted_run_left_is_kept_and_what_another_made_is_not(tmp_path):
    made, other = Artefact(tmp_path / "it", "key"), Artefact(tmp_path / "it", "other")
    made.begin()
    (made.folder / "checkpoint").write_text("half way")
    made.begin()
    assert (made.folder / "checkpoint").exists()
    other.begin()
    assert not (made.folder / "checkpoint").exists()


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    with pytest.raises(RuntimeError), artefact.open_atomic(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


# What a killed run may leave, made by the process with another id: each is gone after the next run.
LEAVERS = {
    "a file before its rename": "with open_atomic(folder / 'x.bin') as f: f.write(b'1'); die()",
    "a file of another folder": "with open_atomic(folder / 'hf' / 'x') as f: f.write(b'1'); die()",
    "a folder that is being removed": (
        "shutil.rmtree = lambda *_, **__: die() if os.path.exists(_[0]) else None; remove(folder)"
    ),
    "a save of Orbax": "(folder / 'c' / '1.orbax-checkpoint-tmp-7').mkdir(parents=True); die()",
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Of each of LEAVERS a folder that it was killed in: a fork each of one process."""
    root = tmp_path_factory.mktemp("killed")
    for name in LEAVERS:
        Artefact(root / name / "it", "key").begin()
    program = f"""
import os, shutil, signal
from pathlib import Path
from taskpgm.artefact import open_atomic, remove
for name, script in {LEAVERS!r}.items():
    child = os.fork()
    if not child:
        folder = Path({str(root)!r}) / name / "it"
        die = lambda: os.kill(os.getpid(), signal.SIGKILL)
        exec(script)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    return root


@pytest.mark.parametrize("name", LEAVERS)
def test_leftovers_of_a_killed_run_go(killed, name):
    def left() -> set[str]:
        found = {p.name for p in (killed / name).rglob("*")}
        return found - {"it", "key.json", "done.json", "c", "hf"}

    assert left()
    made = Artefact(killed / name / "it", "key")
    made.begin()
    made.finish()
    assert left() == set()


def test_leftovers_are_found_wherever_they_are(tmp_path):
    (tmp_path / "a" / "b" / ".gone.old").mkdir(parents=True)
    (tmp_path / "a" / ".model.safetensors.123.tmp").write_text("of an older version, by its pid")
    (tmp_path / "a" / "kept.tmp").write_text("a user's")
    remove_leftovers(tmp_path)
    assert {p.name for p in tmp_path.rglob("*")} == {"a", "b", "kept.tmp"}


def test_removing_what_is_not_there(tmp_path):
    remove(tmp_path / "nothing")
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "done.json").write_text('{"key": ')
    with pytest.raises(ValueError, match="done.json is damaged .*: remove .*done.json and start"):
        Artefact(tmp_path, "key").is_done()


def test_the_way_out_of_damage_is_the_mark_and_it_leads_out(tmp_path):
    made = Artefact(tmp_path / "it", "key")
    made.begin()
    (made.folder / "checkpoint").write_text("whole")
    (made.folder / "it.json").write_text("{")
    made.finish()
    mark = made.folder / artefact.MARK
    for _ in range(2):  # damaged, then missing
        with pytest.raises(ValueError, match=rf"it.json is .*: remove {mark} and"):
            read_json(made.folder / "it.json")
        (made.folder / "it.json").unlink(missing_ok=True)
    mark.unlink()
    made.begin()
    assert not made.is_done()
    assert (made.folder / "checkpoint").exists()


def test_the_way_out_of_a_file_without_a_mark_is_the_file(tmp_path):
    (tmp_path / "tasks.json").write_text("{")
    with pytest.raises(ValueError, match=rf"damaged .*: remove {tmp_path}/tasks.json and start"):
        read_json(tmp_path / "tasks.json")
    with pytest.raises(ValueError, match="damaged"):
        read_json(tmp_path / "tasks.json", None)
    assert read_json(tmp_path / "nothing.json", None) is None


def test_a_damaged_key_does_not_hold_up_one_who_begins(tmp_path):
    made, other = Artefact(tmp_path / "it", "key"), Artefact(tmp_path / "it", "other")
    made.begin()
    started = made.folder / artefact.STARTED
    started.write_text("{")
    with pytest.raises(ValueError, match=rf"key.json is damaged .*: remove {started} and"):
        made.begin()
    made.finish()
    other.begin()
    assert read_json(started) == {"key": "other"}


def test_digest_is_stable():
    # A changed digest makes every workdir in the world stale: change it knowingly.
    a = artefact.digest("a", {"b": 1, "a": [1.5, None]})
    assert a == artefact.digest("a", {"a": [1.5, None], "b": 1})
    assert artefact.digest("a") != artefact.digest("b")


def test_fingerprint_sees_content_and_names(tmp_path):
    (tmp_path / "x").write_bytes(b"1" * 10)
    before = artefact.fingerprint(tmp_path, ["x"])
    (tmp_path / "x").write_bytes(b"1" * 9 + b"2")
    assert artefact.fingerprint(tmp_path, ["x"]) != before
