"""Parts of the config that several sections have."""

from taskpgm.stages.schema import Key, choice, integer, number, words

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def optimizer(lr: float, weight_decay: float = 0.0, warmup: float = 0.01) -> dict[str, Key]:
    """AdamW with a warm-up and a decay to zero."""
    return {
        "lr": number(lr, "the largest learning rate", above=True, most=10.0),
        "schedule": choice("cosine", ("cosine", "linear", "constant"), "how it decays to zero"),
        "warmup": number(warmup, "share of all steps in which it rises", most=1.0),
        "weight_decay": number(weight_decay, "of AdamW, times the learning rate", most=1000.0),
        "b1": number(0.9, "decay of the first moment", most=1.0, below=True),
        "b2": number(0.999, "decay of the second moment", most=1.0, below=True),
        "eps": number(1e-8, "added to the root of the second moment", above=True, most=1.0),
        "clip": number(1.0, "global norm of the gradient; 0: unclipped"),
    }


def lora() -> dict[str, Key]:
    """Low-rank adapters (Hu et al. 2021) on the named matrices."""
    return {
        "rank": integer(8, 1, "rank of each adapter", 2**16),
        "alpha": number(32.0, "the adapter is scaled by alpha / rank", above=True, most=1e6),
        "dropout": number(0.0, "of the adapter's input", most=1.0, below=True),
        "targets": words(TARGETS[:4], "matrices that have an adapter", TARGETS),
    }
