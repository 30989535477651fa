"""Entropies that fall, and noise that remembers."""

import math

import numpy as np


def decay(n=60, *, top=0.9, floor=0.1, tau=15.0):
    """(times, entropies): an exponential fall in nats."""
    times = np.arange(n, dtype=float)
    return times, floor + (top - floor) * np.exp(-times / tau)


def noisy(n, *, sd, rho=0.0, seed=0):
    """AR(1) noise with standard deviation `sd`."""
    draw = np.random.default_rng(seed)
    e = np.empty(n)
    e[0] = draw.normal()
    for i in range(1, n):
        e[i] = rho * e[i - 1] + math.sqrt(1 - rho**2) * draw.normal()
    return sd * e
