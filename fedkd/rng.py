"""One seed, many named independent streams; nothing else seeds anything.

A stream is named by (seed, round, party, purpose), so what a client draws depends neither on the
worker that serves it nor on who was served before.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Generator

SERVER = -1  # the party id of the server
SETUP = 0  # the round of all that happens before round 1


def number(seed: int, round_: int, party: int, purpose: str) -> int:
    """A 63-bit seed for a library that wants a number instead of a generator."""
    name = f"{seed}/{round_}/{party}/{purpose}".encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "little") >> 1


def stream(seed: int, round_: int, party: int, purpose: str) -> Generator:
    """The generator of that name, on the CPU (draws are moved to a device, so bits stay equal)."""
    return Generator().manual_seed(number(seed, round_, party, purpose))


@contextmanager
def borrow(rng: Generator) -> Iterator[None]:
    """Let code that draws from the global generators draw from `rng` instead.

    For initialisation, dropout and third-party factories: torch's, NumPy's and Python's global
    generators are set from `rng`, and given back as they were; `rng` moves on.
    """
    kept_torch, kept_numpy, kept_python = (
        torch.get_rng_state(),
        np.random.get_state(),
        random.getstate(),
    )
    kept_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    draw = int(torch.randint(2**62, (), generator=rng))
    torch.set_rng_state(rng.get_state())
    np.random.set_state(np.random.RandomState(draw % 2**32).get_state())
    random.seed(draw)
    if kept_cuda is not None:
        torch.cuda.manual_seed_all(draw)
    try:
        yield
    finally:
        rng.set_state(torch.get_rng_state())
        torch.set_rng_state(kept_torch)
        np.random.set_state(kept_numpy)
        random.setstate(kept_python)
        if kept_cuda is not None:
            torch.cuda.set_rng_state_all(kept_cuda)
