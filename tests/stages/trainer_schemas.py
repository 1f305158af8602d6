"""What other trainers accept as a description of data: keys and types, read off their sources.

None of them is installed here. Each table names the version, the commit with its day, and the file.
A mapping stands for a mapping with these keys, a list for a list of such things, and a tuple for
any one of its members.
"""

from collections.abc import Mapping
from typing import Any

TEXTS = [str]
WHEN = ("all", "turn", "last", "none")

# axolotl 0.18.0, 067b021c of 2026-07-24, src/axolotl/utils/schemas/datasets.py (SFTDataset,
# UserDefinedPrompterType) and training.py (train_on_inputs).
AXOLOTL = {
    "train_on_inputs": bool,
    "datasets": [
        {
            **dict.fromkeys(("path", "split", "input_transform", "conversation"), str),
            **dict.fromkeys(("chat_template", "chat_template_jinja", "input_format"), str),
            **dict.fromkeys(("name", "ds_type", "field", "field_human", "field_model"), str),
            **dict.fromkeys(("field_messages", "field_tools", "field_thinking"), str),
            **dict.fromkeys(("template_thinking_key", "logprobs_field", "revision"), str),
            **dict.fromkeys(("message_field_role", "message_field_content"), str),
            **dict.fromkeys(("message_field_training", "message_field_training_detail"), str),
            **dict.fromkeys(("shards", "shards_idx", "preprocess_shards"), int),
            **dict.fromkeys(("split_thinking", "drop_system_message", "trust_remote_code"), bool),
            **dict.fromkeys(("train_on_eos", "train_on_eot"), WHEN),
            "data_files": (str, TEXTS),
            "message_property_mappings": {"role": str, "content": str},
            "temperature": float,
            "roles_to_train": TEXTS,
            "roles": {role: TEXTS for role in ("user", "assistant", "system", "tool")},
            "type": (
                str,
                {
                    **dict.fromkeys(("system_prompt", "system_format", "field_system"), str),
                    **dict.fromkeys(("field_instruction", "field_input", "field_output"), str),
                    **dict.fromkeys(("format", "no_input_format"), str),
                },
            ),
        }
    ],
}

# LLaMA-Factory 0.9.6.dev0, ff6d4d12 of 2026-08-18, src/llamafactory/data/parser.py (DatasetAttr,
# get_dataset_list): an entry of dataset_info.json. Columns and tags that are left out become None
# where the other ones are given.
LLAMA_FACTORY = {
    **dict.fromkeys(("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url"), str),
    **dict.fromkeys(("cloud_file_name", "file_name", "subset", "split", "folder"), str),
    "formatting": ("alpaca", "sharegpt", "openai"),
    "ranking": bool,
    "num_samples": int,
    "columns": dict.fromkeys(
        ("prompt", "query", "response", "history", "messages", "system", "tools")
        + ("images", "videos", "audios", "chosen", "rejected", "kto_tag"),
        str,
    ),
    "tags": dict.fromkeys(
        ("role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag")
        + ("function_tag", "system_tag"),
        str,
    ),
}

# open-instruct, e6c3044a of 2026-08-20, open_instruct/finetune.py (FlatArguments): what it says of
# data; and dataset_transformation.py (load_dataset_configs, DatasetConfig), see the test.
OPEN_INSTRUCT = {
    "dataset_name": str,
    "dataset_mixer": dict,
    "dataset_mixer_list": TEXTS,
    "dataset_mixer_list_splits": TEXTS,
    "dataset_transform_fn": TEXTS,
    "dataset_target_columns": TEXTS,
    "dataset_cache_mode": ("hf", "local"),
    "dataset_local_cache_dir": str,
    "dataset_config_hash": str,
    "dataset_skip_cache": bool,
    "dataset_mix_dir": str,
    "dataset_config_name": str,
    "max_train_samples": int,
}

# NeMo 2.6.0rc0, 8cfedd72 of 2025-09-20, examples/nlp/language_modeling/tuning/conf/
# megatron_gpt_finetuning_config.yaml, and what megatron_gpt_sft_model.py reads of it.
NEMO = {
    "model": {
        "answer_only_loss": bool,
        "data": {
            "chat": bool,
            "chat_prompt_tokens": dict,
            "train_ds": {
                "file_names": TEXTS,
                "concat_sampling_probabilities": [float],
                **dict.fromkeys(("label_key", "truncation_field", "prompt_template"), str),
                "truncation_method": ("left", "right"),
                "index_mapping_dir": str,
                **dict.fromkeys(("shuffle", "pin_memory", "drop_last", "add_eos"), bool),
                **dict.fromkeys(("add_sep", "add_bos", "global_sample_mapping"), bool),
                **dict.fromkeys(("global_batch_size", "micro_batch_size", "num_workers"), int),
                **dict.fromkeys(("memmap_workers", "max_seq_length", "min_seq_length"), int),
            },
        },
    }
}


def misfits(value: Any, schema: Any, at: str = "") -> list[str]:
    """What in a value the schema does not have, as paths."""
    if isinstance(schema, tuple):
        tried = [misfits(value, each, at) for each in schema]
        return min(tried, key=len)
    if isinstance(schema, Mapping):
        if not isinstance(value, Mapping):
            return [f"{at}: no mapping"]
        return [
            text
            for key, part in value.items()
            for text in (
                misfits(part, schema[key], f"{at}.{key}")
                if key in schema
                else [f"{at}.{key}: no such key"]
            )
        ]
    if isinstance(schema, list):
        if not isinstance(value, list) or not value:
            return [f"{at}: no list"]
        return [text for part in value for text in misfits(part, schema[0], at)]
    fits = type(value) is schema if isinstance(schema, type) else value == schema
    return [] if fits else [f"{at}: {value!r} is not {schema}"]
