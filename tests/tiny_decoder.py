"""The decoder that most tests of models start from: a few thousand weights, two layers."""

from taskpgm.models import DecoderConfig

TINY = DecoderConfig(
    architecture="llama",
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_position=64,
    initializer_range=0.2,
)
