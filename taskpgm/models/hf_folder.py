"""A Hugging Face model folder: its JSON files, and where its tensors lie.

Only JSON and safetensors are read: no file is unpickled and no code of a folder runs.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taskpgm.models import hf_keys
from taskpgm.models.safetensors_file import Entry, read_header

CONFIG, GENERATION = "config.json", "generation_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE = "a pickle, which could run code when it is opened"
# Weights of other formats, by the ending of their files: what they are.
OTHER_FORMATS = {
    ".gguf": "a GGUF file",
    ".bin": PICKLE,
    ".pt": PICKLE,
    ".pth": PICKLE,
    ".ckpt": PICKLE,
    ".h5": "a file of TensorFlow",
    ".msgpack": "a file of Flax",
}


def refuse_other_formats(path: Path) -> None:
    """Raises ValueError for a file of weights in another format, or a folder with no others: one
    line that names the file and says how to convert it."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    if any(file.name == INDEX or file.suffix == ".safetensors" for file in files):
        return
    for file in files:
        what = OTHER_FORMATS.get(file.suffix.lower())
        if what is None:
            continue
        gguf = f", gguf_file={file.name!r}" if file.suffix.lower() == ".gguf" else ""
        raise ValueError(
            f"{file}: {what}, is not read; convert it once to safetensors, where torch is"
            ' installed: python -c "from transformers import AutoModelForCausalLM as M,'
            f" AutoTokenizer as T; [c.from_pretrained({str(file.parent)!r}{gguf})"
            ".save_pretrained('OUT') for c in (M, T)]\""
        )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError, naming the file, if it holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a JSON object")
    return content


def read_config(path: Path) -> tuple[dict[str, Any], str]:
    """The content of a config.json, given it or its folder, and its name for errors.

    The special tokens of a generation_config.json beside it come first, as in `transformers`: it
    is there that Llama-3-Instruct names the end of a turn.
    """
    path = path / CONFIG if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a model folder holds a {CONFIG}")
    generation = read_generation_config(path.parent)
    ids = {key: generation[key] for key in hf_keys.TOKEN_IDS if generation.get(key) is not None}
    return {**read_json(path), **ids}, str(path)


def read_generation_config(folder: Path) -> dict[str, Any]:
    """The content of a folder's generation_config.json; empty where there is none.

    Raises ValueError, naming the file and the key, for special tokens that are no numbers.
    """
    path = folder / GENERATION
    content = read_json(path) if path.is_file() else {}
    hf_keys.check(content, hf_keys.GENERATION, str(path))
    return content


def generation_config(
    before: dict[str, Any],
    *,
    bos: int | None,
    eos: int | Sequence[int] | None,
    pad: int | None,
    trained_ends: Sequence[int] = (),
) -> dict[str, Any]:
    """The generation_config.json of a saved model, given its base's (or an empty one).

    All ids that end a text stay ends, and those that the model was trained to write are added.
    """
    ends = [*as_ids(before.get("eos_token_id")), *as_ids(eos), *trained_ends]
    ends = list(dict.fromkeys(int(i) for i in ends))
    ids: dict[str, Any] = {"bos_token_id": bos, "pad_token_id": pad}
    ids["eos_token_id"] = ends[0] if len(ends) == 1 else ends or None
    kept = {key: value for key, value in before.items() if not key.startswith("_")}
    return {**kept, **{key: value for key, value in ids.items() if value is not None}}


def as_ids(ids: int | Sequence[int] | None) -> tuple[int, ...]:
    """One id, several or none (JSON knows all three) as a tuple."""
    if ids is None:
        return ()
    return (ids,) if isinstance(ids, int) else tuple(ids)


def find_tensors(folder: Path) -> dict[str, Entry]:
    """Every tensor of a folder by its name in the files. Reads headers only.

    Raises FileNotFoundError or ValueError, naming the file, if there are no safetensors or if a
    file or its index is damaged.
    """
    if (folder / WEIGHTS).is_file():
        return read_header(folder / WEIGHTS)
    if (folder / INDEX).is_file():
        return _read_index(folder)
    refuse_other_formats(folder)
    raise FileNotFoundError(
        f"{folder}: no weights ({WEIGHTS} or {INDEX}); save the model with transformers'"
        " save_pretrained"
    )


def _read_index(folder: Path) -> dict[str, Entry]:
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(map(_plain_name, weight_map.values())):
        raise ValueError(f"{folder / INDEX}: weight_map is not an object of file names")
    headers = {}
    for name in sorted(set(weight_map.values())):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: no such file, though {INDEX} names it")
        headers[name] = read_header(folder / name)
    for tensor, name in weight_map.items():
        if tensor not in headers[name]:
            raise ValueError(f"{folder / name}: tensor {tensor} is missing, though {INDEX} has it")
    return {tensor: headers[name][tensor] for tensor, name in weight_map.items()}


def _plain_name(name: Any) -> bool:
    """A file of the folder itself: an index must not lead out of it."""
    return isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name
