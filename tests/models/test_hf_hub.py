"""A model named by folder or hub id, from a cache that the tests build: nothing is downloaded."""

import shutil

import pytest
from huggingface_hub import constants

from taskpgm.models import find_model, load_hf, save_hf

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tiny, randomized, tmp_path):
    config = tiny()
    save_hf(tmp_path / "model", config, randomized(config))
    return tmp_path / "model"


@pytest.fixture
def cached(folder, tmp_path, monkeypatch):
    """cached(id, revision name) puts the folder into an offline cache as the hub's model."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(name, ref="main"):
        home = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        shutil.copytree(folder, home / "snapshots" / REVISION)
        (home / "refs").mkdir()
        (home / "refs" / ref).write_text(REVISION)
        return home / "snapshots" / REVISION

    return put


@pytest.mark.parametrize("name", ["gpt2", "org/Model-1.5b"])
def test_a_model_of_the_cache(cached, folder, name):
    snapshot = cached(name)
    assert find_model(name, "base.path") == snapshot
    assert load_hf(find_model(name, "base.path"))[0] == load_hf(folder)[0]


def test_a_revision_of_the_cache(cached):
    snapshot = cached("org/model", ref="v2")
    assert find_model("org/model@v2", "base.path") == snapshot
    assert find_model(f"org/model@{REVISION}", "base.path") == snapshot
    refused("org/model", "--config.base.path=org/model: neither a folder nor a model that the hub")


def refused(name, said, kind=FileNotFoundError):
    with pytest.raises(kind, match=said) as error:
        find_model(name, "base.path")
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("cached")
def test_what_is_neither(tmp_path):
    refused("org/model", "--config.base.path=org/model: neither a folder nor a model that the hub")
    for name in (tmp_path / "none", "../none", "~/none/of/these", "a/b/c", "./none", "has space"):
        refused(name, f"--config.base.path={name}: no such model folder")


def test_what_the_hub_says_is_one_line(monkeypatch):
    import huggingface_hub

    def gated(*_, **__):
        raise OSError("Access is restricted.\nLog in.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", gated)
    refused("org/model", r"neither .* gives \(Access is restricted.\)")


def test_no_code_and_no_pickle_is_asked_for(monkeypatch, folder):
    import fnmatch

    import huggingface_hub

    asked = {}

    def download(repo, **options):
        asked.update(options, repo=repo)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find_model("org/model", "base.path") == folder
    wanted = lambda name: any(fnmatch.fnmatch(name, p) for p in asked["allow_patterns"])  # noqa: E731
    assert wanted("config.json") and wanted("model-00001-of-00002.safetensors")
    assert not any(map(wanted, ("modeling_x.py", "pytorch_model.bin", "model.pt", "model.gguf")))


@pytest.mark.parametrize("name", ["model.gguf", "pytorch_model.bin", "consolidated.00.pth"])
def test_files_of_other_formats(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    refused(folder, f"{name}: .* is not read; convert it once", ValueError)
    refused(folder / name, f"{name}: .* is not read; convert it once", ValueError)


def test_a_file_where_a_folder_is_meant(folder):
    refused(folder / "model.safetensors", "a file; name the folder", ValueError)
    (folder / "pytorch_model.bin").write_bytes(b"")  # beside safetensors it does no harm
    assert find_model(folder, "base.path") == folder
