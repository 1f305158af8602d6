"""Loading a model's tokenizer, and checking that the model embeds every token it produces."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

if TYPE_CHECKING:  # importing transformers costs more than a second
    from transformers import PreTrainedTokenizerBase

FILE = "tokenizer.json"
VOCABULARIES = ("tokenizer.model", "vocab.json")  # files that transformers can build one from
# Words, numbers, spaces and punctuation, where pre-tokenizers differ.
PROBE = "In 2024,  I'd say 12345 words;\n\n\tthe naïve naming: \u6771\u4eac x_y->z()"


def load_tokenizer(path: str | Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a Hugging Face folder: exactly its tokenizer.json, if it has one.

    `AutoTokenizer` would choose a class by the model's type, and that class may replace the
    pre-tokenizer of tokenizer.json. No code in the folder is run, and the user is asked nothing.

    Raises FileNotFoundError if the folder has no tokenizer, ValueError if its tokenizer_config.json
    leads to other tokens than its tokenizer.json.
    """
    from transformers import PreTrainedTokenizerFast

    file = Path(path) / FILE
    own = file.is_file()
    if not own and not any((Path(path) / name).is_file() for name in VOCABULARIES):
        raise FileNotFoundError(f"no tokenizer at {path}: it needs {FILE}")
    try:
        if own:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(str(path), trust_remote_code=False)
        else:
            from transformers import AutoTokenizer  # here, as it takes a second to import

            tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
        tokenizer([PROBE], return_offsets_mapping=own, verbose=False)
    except Exception as error:  # whatever the library's readers raise for a damaged file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if own:
            raise ValueError(f"{file}: cannot be read as a tokenizer ({reason})") from error
        raise FileNotFoundError(f"no tokenizer at {path}: it needs {FILE} ({reason})") from error
    if own:
        _check_against_file(tokenizer, file)
    tokenizer.init_kwargs.pop("auto_map", None)  # names code, which must not be saved with a model
    return tokenizer


def _check_against_file(tokenizer: "PreTrainedTokenizerBase", file: Path) -> None:
    """Raises ValueError if the tokenizer gives other ids than its tokenizer.json alone."""
    from tokenizers import Tokenizer

    alone = Tokenizer.from_file(str(file))
    alone.no_truncation()
    alone.no_padding()
    added = [token.content for token in alone.get_added_tokens_decoder().values()]
    for text in (PROBE, *(f"a {token} b" for token in added)):
        wanted, got = alone.encode(text).ids, tokenizer(text, verbose=False)["input_ids"]
        if got != wanted:
            raise ValueError(
                f"{file.with_name('tokenizer_config.json')}: contradicts {FILE}: for {text!r} it"
                f" gives the ids {got[:8]}, {FILE} gives {wanted[:8]}; remove split_special_tokens,"
                " or whatever differs, so that both files agree"
            )


def check_vocabulary(
    tokenizer: "PreTrainedTokenizerBase",
    ids: Iterable[Int[np.ndarray, "..."]],
    vocab_size: int,
    where: str,
) -> None:
    """Raises ValueError, beginning with `where`, for a token that the model has no embedding for.

    ids: encoded texts. A tokenizer may be larger than the model as long as its extra tokens do not
    occur: JAX would read an id beyond the embedding as NaN or as another token.
    """
    for row in ids:
        beyond = np.asarray(row)[np.asarray(row) >= vocab_size]
        if len(beyond):
            token = tokenizer.convert_ids_to_tokens(int(beyond[0]))
            raise ValueError(
                f"{where}: the token {token!r} has id {beyond[0]}, but the model embeds only"
                f" {vocab_size} ids, and its tokenizer has {len(tokenizer)}; take the tokenizer"
                " that belongs to the model, or resize the model's embeddings and train them"
            )
