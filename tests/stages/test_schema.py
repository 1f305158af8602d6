"""Every bad value is refused at the start, in a line with its key and what is allowed."""

from pathlib import Path

import pytest

from taskpgm.stages import default_config, validate
from taskpgm.stages.compare import check
from taskpgm.stages.defaults import keys, table
from tests.stages.launching import launch

NAN, INF = float("nan"), float("inf")
# By key, values of the key's own type that mean nothing.
SENSELESS = {
    "seed": (-1, 2**40),
    "tasks.source": ("", " ", "a\nb", "a\0b"),
    "tasks.heldout_fraction": (-0.1, 1.0, 2.0, NAN, INF),
    "tasks.test_fraction": (-0.1, 1.0, NAN),
    "tasks.max_heldout": (-1,),
    "tasks.max_test": (-5,),
    "tasks.targets": ("a\tb",),
    "mixture.bounds": ("a\tb",),
    "mixture.prior": ("", "a\tb"),
    "mixture.kl": (-0.1, NAN, INF),
    "tasks.chat_template": ("/no/such/file.jinja", "nowhere"),
    "tasks.length": (0, -1, 1, 2, 2**30),
    "base.path": ("a\tb",),
    "base.dtype": ("int8", "", "Float32", "bf16"),
    "base.param_dtype": ("int32", "float64x"),
    "base.remat": ("some", "", "Full"),
    "base.attention": ("flash", "Auto", ""),
    "embedded.vocab_size": (0, -1, 100),
    "embedded.hidden_size": (0, -8, 3, 129),
    "embedded.intermediate_size": (0, -1),
    "embedded.num_layers": (0, -1),
    "embedded.num_heads": (0, 3, -4),
    "embedded.num_kv_heads": (0, 3, -2, 8),
    "embedded.task_share": (-0.1, 1.1, NAN),
    "embedded.examples_per_task": (0, -1),
    "embedded.steps": (0, -1),
    "embedded.batch_size": (0, -1),
    "embedded.checkpoint_every": (0, -1),
    "proxy.path": ("a\0b",),
    "adapters.source": ("a\tb",),
    "adapters.mode": ("qlora", "", "LoRA"),
    "adapters.epochs": (0.0, -1.0, NAN, INF),
    "adapters.min_steps": (0, -1),
    "adapters.max_steps": (-1,),
    "adapters.batch_size": (0, -1),
    "adapters.group": (-1,),
    "adapters.memory": (-1.0, NAN, INF),
    "adapters.checkpoint_every": (0, -1),
    "affinity.kind": ("mi", "", "PMI"),
    "affinity.normalize": ("word", "", "none"),
    "affinity.contexts": ("all", ""),
    "affinity.vocab_top_k": (-1,),
    "affinity.kernel": ("triton", "", "XLA"),
    "affinity.batch_size": (0, -1),
    "embeddings.batch_size": (0, -1),
    "embeddings.examples": (-1,),
    "affinity.memory": (0.0, -1.0, NAN, INF),
    "affinity.bootstrap": (-1,),
    "mixture.ratio": ("-1", "nan", "inf", "", "high", "pmi", "pmi=", "x=1", "pmi=1,pmi=2"),
    "mixture.importance": ("", " "),
    "mixture.psd": ("none", "", "Shift"),
    "mixture.floor": (0.0, -1e-3, 2.0, NAN),
    "mixture.method": ("approximate", "", "closed-form"),
    "mixture.budget": (0, -1),
    "mixture.max_epochs": (0.0, -1.0, NAN, INF),
    "compare": ((), ("",), (" ",), (1,)),
    "export": (("json",), ("trl", "trl"), (1,)),
    "train.mode": ("half", "", "none"),
    "train.steps": (-1,),
    "train.epochs": (0.0, -1.0, NAN),
    "train.seeds": (0, -1),
    "train.batch_size": (0, -1),
    "train.group": (-1, 1001),
    "train.accumulate": (0, -1, 3, 32),
    "train.checkpoint_every": (0, -1),
    "train.keep": (0, -1),
    "train.log": ("board", "Wandb"),
    "evaluation.batch_size": (0, -1),
    "evaluation.exact_match_examples": (-1,),
    "evaluation.max_new_tokens": (0, -1, 2048),
    "evaluation.harness": (("",), ("mmlu", "mmlu"), (3,)),
    "evaluation.harness_num_fewshot": (-2,),
    "evaluation.harness_limit": (-1,),
    "evaluation.harness_batch_size": (0, -1),
    "mesh.task": (0, -2),
    "mesh.data": (0, -2),
    "mesh.fsdp": (0, -1, -2),  # -1: only one axis can be what is left, and `data` is
    "mesh.tensor": (0, -2),
    "log_every": (0, -1),
    "ray.workers": (0, -1),
    "ray.cpus": (-1.0, float("nan")),
    "ray.gpus": (-1.0, float("inf")),
    "ray.retries": (-1,),
}
for section in ("embedded", "adapters", "train"):
    SENSELESS |= {
        f"{section}.optimizer.lr": (0.0, -1.0, NAN, INF),
        f"{section}.optimizer.schedule": ("step", "", "Cosine"),
        f"{section}.optimizer.warmup": (-0.1, 1.5, NAN),
        f"{section}.optimizer.weight_decay": (-0.1, NAN, INF),
        f"{section}.optimizer.b1": (-0.1, 1.0, NAN),
        f"{section}.optimizer.b2": (-0.1, 1.0, NAN),
        f"{section}.optimizer.eps": (0.0, -1e-8, NAN),
        f"{section}.optimizer.clip": (-1.0, NAN, INF),
    }
for section in ("adapters", "train"):
    SENSELESS |= {
        f"{section}.lora.rank": (0, -1),
        f"{section}.lora.alpha": (0.0, -1.0, NAN),
        f"{section}.lora.dropout": (-0.1, 1.0, NAN),
        f"{section}.lora.targets": ((), ("q",), ("q_proj", "q_proj"), ("q_proj", "")),
    }
MEMBERS = [(key, value) for key, values in SENSELESS.items() for value in values]


def changed(key, value):
    config = default_config()
    *sections, last = key.split(".")
    section = config
    for name in sections:
        section = section[name]
    section[last] = value
    return config


@pytest.mark.parametrize(("key", "value"), MEMBERS, ids=lambda x: str(x).replace("\0", "NUL"))
def test_a_senseless_value_is_refused_by_key(key, value):
    with pytest.raises(ValueError) as refused:
        check_all(changed(key, value))
    line = str(refused.value)
    assert "\n" not in line and "\0" not in line
    # A conflict of two keys names either.
    assert key in line or key.split(".")[-1] in line


def check_all(config):
    """What is checked before any data is read."""
    check(validate(config), None)


def test_the_table_above_is_about_every_key_that_can_be_wrong():
    free = {"affinity.matrix", "affinity.sizes", "evaluation.harness_path"}  # their files say so
    switches = {name for name, key in keys().items() if isinstance(key.default, bool)}
    assert len(MEMBERS) >= 128
    swept = {name for name in keys() if name.startswith("sweep.")}  # see test_sweep.py
    assert set(SENSELESS) == set(keys()) - free - switches - swept


def test_values_of_another_type_are_refused():
    for key, value in (("seed", "0"), ("tasks.source", 3), ("mixture.ratio", 2.0), ("seed", True)):
        config = default_config()
        with config.ignore_type():
            *sections, last = key.split(".")
            (config[sections[0]] if sections else config)[last] = value
        with pytest.raises(ValueError, match=f"config: {key}="):
            validate(config)


def test_every_default_is_allowed_and_a_near_miss_is_named():
    check_all(default_config())
    with pytest.raises(ValueError, match="did you mean 'linear'"):
        validate(changed("train.optimizer.schedule", "linaer"))


def test_the_table_of_keys_in_the_docs_is_up_to_date():
    written = (Path(__file__).parents[2] / "docs" / "config.md").read_text(encoding="utf-8")
    assert written == table(), "python -m taskpgm.stages.defaults > docs/config.md"
    assert all(key.meaning and f"`{name}`" in written for name, key in keys().items())


# --- The same for every key, whatever it is ------------------------------------------------------
WRONG = {
    int: ("0", 1.5, None, True, (1,), NAN, -(2**70), 2**70, 10**5000, [], {}),
    float: ("0.1", None, (0.5,), NAN, INF, -INF, -1.0, 1e39, []),
    str: (None, 1, 0.5, True, ("a",), [], "a\nb", "\0", "\ud800", "x" * 300, "a/" * 3000),
    bool: (0, 1, "True", None, 1.0, ()),
    tuple: (None, 1, "uniform", {"uniform"}, (1,), ((),), ("",), ("a", "a"), ("\n",), ("x" * 300,)),
}


@pytest.mark.parametrize("key", [name for name in keys() if not name.startswith("sweep.")])
def test_no_key_takes_what_is_none_of_its_values(key):
    for value in WRONG[type(keys()[key].default)]:
        config = default_config()
        *sections, last = key.split(".")
        at = config
        for name in sections:
            at = at[name]
        with at.ignore_type(), at.unlocked():
            at[last] = value
        with pytest.raises(ValueError) as refused:
            check_all(config)
        line = str(refused.value)
        assert key in line and "\n" not in line and "\0" not in line and len(line) < 700
        if not isinstance(value, dict):
            assert keys()[key].allowed in line


CONFLICTS = {
    "affinity.vocab_top_k": ({"affinity.vocab_top_k": 1024}, "below embedded.vocab_size=1024"),
    "evaluation.harness_path": ({"evaluation.harness_path": "own/"}, "evaluation.harness"),
    "affinity.sizes": ({"affinity.sizes": "sizes.json"}, "affinity.matrix"),
    "affinity.kind": ({"affinity.kind": "loss"}, "affinity.matrix"),
    "base.attention": ({"base.attention": "splash", "tasks.length": 100}, "multiple of 128"),
    "adapters.max_steps": ({"adapters.max_steps": 2, "adapters.min_steps": 3}, "min_steps=3"),
    "tasks.heldout_fraction": (
        {"tasks.heldout_fraction": 0.5, "tasks.test_fraction": 0.5},
        "test_fraction",
    ),
    "adapters.peft": ({"adapters.peft": True, "adapters.mode": "full"}, "adapters.mode=lora"),
    "mesh.fsdp": ({"mesh.fsdp": -1}, "mesh.data"),
}


@pytest.mark.parametrize(("key", "case"), CONFLICTS.items(), ids=CONFLICTS)
def test_values_that_contradict_each_other(key, case):
    changes, named = case
    config = default_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=f"config: {key}=") as refused:
        check_all(config)
    assert named in str(refused.value)


FLAGS = ("seed=many", "train.seeds=1.5", "train.optimizer.lr=fast", "adapters.peft=perhaps")


@pytest.mark.pipeline
@pytest.mark.parametrize("flag", FLAGS)
def test_a_value_on_the_command_line_that_cannot_be_read(flag, tmp_path):
    said = launch(tmp_path / "run", f"--config.{flag}", code=1).stderr
    (line,) = [x for x in said.splitlines() if x.startswith("error: ")]
    key = flag.split("=")[0]
    assert flag in line and keys()[key].allowed in line and "Traceback" not in said
    assert not (tmp_path / "run").exists()
