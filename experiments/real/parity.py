"""Is our decoder the model that transformers makes of the same folder?

    python experiments/real/model.py OUT && python experiments/real/parity.py OUT

Needs the extra `torch`; a minute on 2 CPU cores. Ten prompts, in float32: logits of every position
within 3e-4 of those of transformers, the same 20 greedy tokens, the same ids of the tokenizer.
Writes experiments/results/real_parity.json and ends with 1 if a bound does not hold.
"""

import argparse
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
import torch
import transformers

from taskpgm.models import Decoder, generate, load_hf
from taskpgm.tasks import load_tokenizer

RESULTS = Path(__file__).parents[1] / "results"
BOUND, TOKENS = 3e-4, 20
PROMPTS = (
    "The capital of France is",
    "Q: What is 12 + 35?\nA:",
    "def fibonacci(n):\n    ",
    "Der Film war schlecht, weil",
    "Translate to French: The weather is nice today.\n",
    "In 2024, 1,234.5 people;\n\n\tthe naïve naming: 東京",
    "Once upon a time, in a village by the sea, there lived",
    "Is the sentence positive or negative? I loved every minute of it.\nAnswer:",
)
QUESTIONS = ("Name three primary colours.", "Why is the sky blue?")


def main(folder: Path) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    config, params = load_hf(folder)
    tokenizer = load_tokenizer(folder)
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        for text in QUESTIONS
    ]
    run = jax.jit(lambda params, x: Decoder(config).apply({"params": params}, x))
    rows = []
    for text in (*PROMPTS, *chats):
        ids = tokenizer(text)["input_ids"]
        with torch.no_grad():
            wanted = theirs(torch.tensor([ids])).logits[0].numpy()
        padded = np.zeros((1, 64), np.int32)  # one program for all prompts; what follows is unseen
        padded[0, : len(ids)] = ids
        logits = np.asarray(run(params, padded))[0, : len(ids)]
        options = dict(do_sample=False, max_new_tokens=TOKENS, eos_token_id=None, pad_token_id=0)
        mask = torch.ones(1, len(ids), dtype=torch.long)
        whole = theirs.generate(torch.tensor([ids]), attention_mask=mask, **options)
        greedy = generate(config, params, [ids], max_new_tokens=TOKENS)[0]
        rows.append(
            {
                "prompt": text,
                "tokens": len(ids),
                "same ids": their_tokenizer(text)["input_ids"] == ids,
                "largest difference of logits": float(np.abs(logits - wanted).max()),
                "same greedy tokens": whole[0, len(ids) :].tolist() == greedy,
                "continuation": tokenizer.decode(greedy),
            }
        )
        print(json.dumps(rows[-1], ensure_ascii=False))
    worst = max(row["largest difference of logits"] for row in rows)
    same = all(row["same ids"] and row["same greedy tokens"] for row in rows)
    packages = ("jax", "flax", "torch", "transformers", "tokenizers")
    facts = {
        "command": "python experiments/real/parity.py OUT",
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "versions": ", ".join(f"{name} {version(name)}" for name in packages),
    }
    record = {**facts, "bound": BOUND, "largest difference": worst, "prompts": rows}
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    (RESULTS / "real_parity.json").write_text(text, encoding="utf-8")
    print(f"logits within {worst:.1e}; ids and greedy tokens {'the same' if same else 'DIFFER'}")
    if worst > BOUND or not same:
        raise SystemExit(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    main(parser.parse_args().folder)
