"""The side of transformers and peft in bench_real.py: the loops that one would write."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from bench_ours import AT_ONCE, NEW_TOKENS, Clock, heldout, measured, segments, timed


def padded(examples: list) -> tuple:
    """ids, mask and labels of one batch, padded to its longest."""
    import torch

    longest = max(len(ids) for ids, _ in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, (tokens, begin) in enumerate(examples):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
        labels[row, begin : len(tokens)] = torch.tensor(tokens[begin:])
    return ids, mask, labels


def their_model(folder: Path, adapter: str, trainable: bool = False) -> Any:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(os.cpu_count() or 1)
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    model = PeftModel.from_pretrained(model, folder / adapter, is_trainable=trainable)
    return model.train() if trainable else model.eval()


def train_theirs(folder: Path) -> dict:
    import torch

    world, rates = np.load(folder / "train.npz"), np.load(folder / "rates.npy")
    n, steps = world["tokens"].shape[:2]
    losses, laps = np.zeros((steps, n)), np.zeros((steps, n, 2))
    for i in range(n):
        model = their_model(folder, "start", trainable=True)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1.0, weight_decay=0.0)
        for k in range(steps):
            clock = Clock()
            fields = (world[f][i, k] for f in ("tokens", "weights", "segment_ids"))
            ids, mask, labels = padded(segments(*fields))
            optimizer.param_groups[0]["lr"] = float(rates[k])
            optimizer.zero_grad(set_to_none=True)
            loss = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            losses[k, i] = loss.item()
            laps[k, i] = clock.lap()
    each = laps.sum(1)
    return measured(each[0], each[1:].sum(0), losses.tolist())


def pmi_theirs(folder: Path) -> dict:
    import torch

    examples, found, spent = heldout(folder), [], np.zeros(2)
    for i in range(len(examples)):
        model = their_model(folder, f"adapter{i}")
        clock, nats = Clock(), []
        for task in examples:
            for at in range(0, len(task), AT_ONCE):
                ids, mask, labels = padded(task[at : at + AT_ONCE])
                with torch.inference_mode():
                    said = model(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
                wanted = labels[:, 1:]
                value = said.gather(-1, wanted.clamp(min=0)[..., None])[..., 0].double()
                nats += (value * (wanted >= 0)).sum(1).tolist()
        spent += clock.lap()
        found.append(nats)
    return measured(np.zeros(2), spent, found)


def evaluate_theirs(folder: Path) -> dict:
    import torch

    model = their_model(folder, "start")
    examples = [x for task in heldout(folder) for x in task]

    def run() -> list:
        total, count = 0.0, 0
        for at in range(0, len(examples), AT_ONCE):
            ids, mask, labels = padded(examples[at : at + AT_ONCE])
            with torch.inference_mode():
                loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            scored = int((labels >= 0).sum())
            total, count = total + float(loss) * scored, count + scored
        return [total / count]

    loss = timed(run)
    prompts = sorted((ids[:begin] for ids, begin in examples), key=len)[: 4 * AT_ONCE]

    def write() -> list:
        found = []
        for at in range(0, len(prompts), AT_ONCE):
            some = prompts[at : at + AT_ONCE]
            longest = max(map(len, some))
            ids = torch.tensor([[0] * (longest - len(x)) + x for x in some])
            mask = torch.tensor([[0] * (longest - len(x)) + [1] * len(x) for x in some])
            with torch.inference_mode():
                new = model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    do_sample=False,
                    max_new_tokens=NEW_TOKENS,
                    eos_token_id=None,
                    pad_token_id=0,
                )
            found += new[:, longest:].tolist()
        return found

    return {"loss": loss, "generation": timed(write)}
