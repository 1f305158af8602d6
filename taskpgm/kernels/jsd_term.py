"""What one vocabulary entry adds to a Jensen-Shannon divergence: the arithmetic of every kernel.

One vocabulary entry adds m [(1 + d) ln(1 + d) + (1 - d) ln(1 - d)] / 2 to JSD(p, q), where
m = (p + q)/2 and d = (p - q)/(p + q). No entry adds less than zero, so nothing cancels between
entries and nearly equal distributions keep their relative accuracy; H(m) - H(p)/2 - H(q)/2 would
lose all digits below 1e-7. The bracket is d^2 times a function that only moves from 1 to ln 4 and
is smooth in u = (1 - d^2)^(1/4) = (4 p q)^(1/4) / (p + q)^(1/2). With p^(1/4) at hand per model,
an entry of a pair costs one reciprocal square root and a polynomial: one call of the special
function unit, as its logarithm would be, and no division.

Error, against float64 on the same (rounded) log-probabilities, for distributions that sum to one,
where entries are summed in float32 as affinity/jsd.py does:
    |error| <= 2e-6 JSD + 2e-7 sqrt(JSD) + 1e-13   nats,
the first term from the polynomial and the float32 sums, the second from rounding p and q.
Probabilities below e^-85 = 1e-37, exact zeros (-inf) among them, count as 1e-37.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# [(1 + d) ln(1 + d) + (1 - d) ln(1 - d)] / (4 d^2) as a polynomial in w = 1 - u on [0, 1], by
# ascending power: the minimax fit in relative error (Lawson's iteration), 1.1e-6 in float32.
_BRACKET = 0.5 * np.array(
    [
        0.49999948299853386,
        0.33342424216156924,
        0.030734679684666928,
        -0.0954423599171767,
        -0.2692418690234528,
        0.4339252151671429,
        -0.7802939314467768,
        0.8396258476643101,
        -0.2995834100238861,
    ]
)
_FLOOR = -85.0
_LN2_QUARTER = float(np.log(2.0)) / 4


def spread(
    log_probs: Float[Array | np.ndarray, "*s"],
) -> tuple[Float[Array, "*s"], Float[Array, "*s"]]:
    """What `term` needs of each model: p and (2 p)^(1/4), float32."""
    a = jnp.maximum(log_probs.astype(jnp.float32), _FLOOR)
    return jnp.exp(a), jnp.exp(0.25 * a + _LN2_QUARTER)


def term(
    p: Float[Array, "*#s"],
    f: Float[Array, "*#s"],
    q: Float[Array, "*#s"],
    g: Float[Array, "*#s"],
) -> Float[Array, "*s"]:
    """What each vocabulary entry adds to JSD(p, q), nats; (p, f) and (q, g) come from `spread`."""
    inverse = jax.lax.rsqrt(p + q)
    e = (p - q) * inverse
    w = 1.0 - f * g * inverse
    bracket = jnp.float32(_BRACKET[-1])
    for c in _BRACKET[-2::-1]:
        bracket = bracket * w + jnp.float32(c)
    return e * e * bracket
