"""Models that do not fit the tasks are refused before anything is made; hub ids are resolved."""

import json
import os
import shutil
import subprocess
from functools import partial

import jax
import pytest

import launch as launcher
from taskpgm import models, stages
from taskpgm.tasks import corpus
from tests.stages.launching import ROOT, command, environment, write_tasks
from tests.stages.tiny_config import get_config

pytestmark = pytest.mark.usefixtures("one_tokenizer")
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def tokenizer():
    return corpus.train_tokenizer(["upper shout reverse length w"] * 20, 300)


@pytest.fixture
def data(tmp_path):
    return write_tasks(tmp_path / "data")


def save(folder, tokenizer, *, positions=64, vocabulary=None, family="llama"):
    """A random model and a tokenizer in one folder."""
    raw = {"model_type": family, "vocab_size": vocabulary or len(tokenizer)}
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8}
    raw |= sizes | {"max_position_embeddings": positions, "intermediate_size": 16}
    config = models.DecoderConfig.from_hf(raw | {"eos_token_id": tokenizer.eos_token_id})
    params = jax.jit(partial(models.init_params, config))(jax.random.key(0))
    models.save_hf(folder, config, params)
    tokenizer.save_pretrained(folder)
    return folder


def run(tmp_path, data, last="base", dry_run=False, **paths):
    config = get_config()
    config.tasks.source = str(data)
    config.mesh.data = -1  # all the devices there are: eight in this process
    for section, path in paths.items():
        config[section].path = str(path)
    stages.run(config, str(tmp_path / "run"), last=last, dry_run=dry_run)


def refused(tmp_path, data, dry_run, **paths) -> str:
    with pytest.raises((ValueError, OSError)) as caught:
        run(tmp_path, data, dry_run=dry_run, **paths)
    assert not (tmp_path / "run").exists()
    line = launcher.one_line(caught.value)
    assert "\n" not in line
    return line


@pytest.fixture(scope="module")
def good(tmp_path_factory, tokenizer):
    return save(tmp_path_factory.mktemp("good"), tokenizer)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_rows_longer_than_the_positions(tmp_path, data, tokenizer, good, family):
    short = save(tmp_path / "short", tokenizer, positions=47, family=family)
    for section in ("base", "proxy"):
        for dry_run in (True, False):
            line = refused(tmp_path, data, dry_run, **{"base": good, section: short})
            assert f"tasks.length=48: the model of {section}.path={short} has 47 positions" in line


def test_a_token_without_an_embedding(tmp_path, data, tokenizer, good):
    small = save(tmp_path / "small", tokenizer, vocabulary=100)
    for section in ("base", "proxy"):
        line = refused(tmp_path, data, True, **{"base": good, section: small})
        assert f"{section}.path={small}: task " in line and "embeds only 100 ids" in line


def test_a_larger_tokenizer_whose_extra_tokens_do_not_occur(tmp_path, data, tokenizer, capsys):
    folder = save(tmp_path / "model", tokenizer)
    larger = models.find_model(folder, "base.path")
    added = corpus.train_tokenizer(["upper shout reverse length w"] * 20, 300)
    added.add_tokens(["<|nobody|>", "<|says|>"], special_tokens=True)
    added.save_pretrained(folder)
    run(tmp_path, data, base=larger)
    assert f"{folder} (key " in capsys.readouterr().out
    text = (data / "upper.jsonl").read_text()
    (data / "upper.jsonl").write_text(text.replace("upper w", "upper <|says|> w", 1))
    shutil.rmtree(tmp_path / "run")
    line = refused(tmp_path, data, False, base=folder)
    assert "task upper: the token '<|says|>' has id" in line


def test_a_tokenizer_that_cannot_encode_is_found_first(tmp_path, data, tokenizer):
    folder = save(tmp_path / "model", tokenizer)
    path = folder / "tokenizer_config.json"
    settings = {k: v for k, v in json.loads(path.read_text()).items() if k != "eos_token"}
    path.write_text(json.dumps(settings))
    assert "has no end-of-sequence token" in refused(tmp_path, data, True, base=folder)


@pytest.mark.pipeline
def test_a_hub_id_from_the_cache(tmp_path, data, tokenizer):
    """As a user names it; offline, from a cache that holds the model and a line of code."""
    home = tmp_path / "hub" / "models--org--tiny"
    folder = save(home / "snapshots" / REVISION, tokenizer)
    (folder / "modeling_tiny.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(REVISION)
    own = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    options = (f"--config.tasks.source={data}", "--config.base.path=org/tiny", "--stage=base")
    done = subprocess.run(
        command(tmp_path / "run", *options),
        env=environment() | own,
        cwd=ROOT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(folder) in done.stdout
    assert not os.path.exists(tmp_path / "ran")


def test_a_hub_id_that_is_in_no_cache(tmp_path, data):
    line = refused(tmp_path, data, False, base="org/other")
    assert "--config.base.path=org/other: neither a folder nor a model" in line
