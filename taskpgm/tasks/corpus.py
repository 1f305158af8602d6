"""Text to pretrain the embedded base on, and the tokenizer trained on it: Python's own
documentation."""

import importlib
import inspect
import random
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# A fixed list, not "whatever is installed": all of these are in Python 3.11 to 3.13 on every
# platform.
MODULES = (
    "abc argparse array ast asyncio base64 bisect builtins calendar cmath codecs collections "
    "collections.abc colorsys concurrent.futures configparser contextlib copy csv dataclasses "
    "datetime decimal difflib dis doctest email.message email.utils enum filecmp fnmatch "
    "fractions functools getopt gettext glob gzip hashlib heapq hmac html html.parser http "
    "http.client http.cookies importlib inspect io ipaddress itertools json keyword linecache "
    "locale logging math mimetypes numbers operator optparse os os.path pathlib pickle pprint "
    "profile queue random re sched secrets shelve shlex shutil socket socketserver stat "
    "statistics string struct subprocess tarfile tempfile textwrap threading time timeit token "
    "tokenize traceback types typing unicodedata unittest unittest.mock urllib.parse "
    "urllib.request urllib.robotparser uuid warnings wave weakref webbrowser xml.dom.minidom "
    "xml.etree.ElementTree zipfile zlib "
).split()

SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
CHUNK = 600  # characters: a few hundred, so that one text is one or two packed segments


def documentation(seed: int = 0) -> list[str]:
    """Python's documentation as texts of at most `CHUNK` characters (whole paragraphs where they
    fit), without repeats, in an order shuffled by `seed`. About a megabyte; it differs a little
    between Python versions, as the documentation does, and not between runs."""
    with warnings.catch_warnings():  # a deprecated name is documented too, and warns when read
        warnings.simplefilter("ignore", DeprecationWarning)
        chunks = dict.fromkeys(chunk for text in _documents() for chunk in _chunks(_clean(text)))
    texts = [chunk for chunk in chunks if len(chunk) >= 40]
    random.Random(seed).shuffle(texts)
    return texts


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> "PreTrainedTokenizerFast":
    """A byte-level BPE tokenizer of `vocab_size` tokens: any text round-trips, every digit is a
    token of its own, BOS is prepended. The same texts give the same tokenizer. `save_pretrained`
    writes it as an ordinary Hugging Face folder.

    Raises ValueError when vocab_size cannot hold the 256 bytes and the special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(alphabet) + len(SPECIAL):
        raise ValueError(
            f"vocab_size={vocab_size} is too small: bytes and special tokens are "
            f"{len(alphabet) + len(SPECIAL)}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL.values()),
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    bos = SPECIAL["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos} $B",
        special_tokens=[(bos, tokenizer.token_to_id(bos))],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def _documents() -> Iterator[str]:
    from pydoc_data.topics import topics

    yield from (topics[name] for name in sorted(topics))
    for name in MODULES:
        module = importlib.import_module(name)
        yield from _docstrings(module, module.__name__)


def _docstrings(owner: object, module: str) -> Iterator[str]:
    """Docstrings of a module or class and of its public members, sorted by name, without those that
    other libraries have added (transformers gives loggers methods of its own)."""
    if isinstance(owner.__doc__, str):
        yield inspect.cleandoc(owner.__doc__)
    for name, member in sorted(vars(owner).items()):
        origin = getattr(member, "__module__", None) or module
        if name.startswith("_") or str(origin).split(".")[0] not in sys.stdlib_module_names:
            continue
        if inspect.isclass(member) and member.__module__ == module and member is not owner:
            yield from _docstrings(member, module)
        elif inspect.isroutine(member) and isinstance(doc := getattr(member, "__doc__", None), str):
            yield f"{name}: {inspect.cleandoc(doc)}"


def _clean(text: str) -> str:
    """One blank line between paragraphs, no horizontal rules, no runs of spaces."""
    text = re.sub(r"(?m)^\s*([-=*~^+_|])\1{3,}\s*$", "", text)
    text = re.sub(r"[ \t]+", " ", text.replace("\r", ""))
    text = re.sub(r"(?m)^ | $", "", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _chunks(text: str) -> Iterator[str]:
    """Cuts between paragraphs; a paragraph longer than a chunk is cut between words."""
    chunk = ""
    for paragraph in text.split("\n\n"):
        if chunk and len(chunk) + len(paragraph) + 2 > CHUNK:
            yield chunk
            chunk = ""
        chunk = f"{chunk}\n\n{paragraph}" if chunk else paragraph
        while len(chunk) > CHUNK:
            cut = max(chunk.rfind(" ", 0, CHUNK), chunk.rfind("\n", 0, CHUNK))
            cut = cut if cut > 0 else CHUNK
            yield chunk[:cut].strip()
            chunk = chunk[cut:].strip()
    if chunk:
        yield chunk
