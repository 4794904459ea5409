"""Devices and links of different speed on a virtual clock; who is too slow is not waited for."""

from typing import NamedTuple

import torch
from torch import Generator

from fedkd.rng import SETUP, stream
from fedkd.types import Effort, Natural, NonNegative, Positive, World


class Device(NamedTuple):
    """A kind of client: multiply-adds a second, bits a second down and up, seconds a message.

    `share` says how common it is, relative to the other kinds.
    """

    speed: Positive
    down: Positive
    up: Positive
    latency: NonNegative = 0.0
    share: Positive = 1.0


# round figures for a workstation, a laptop, a phone on a radio link and a small board
DEVICES = (
    Device(speed=2e11, down=1e9, up=1e9, latency=0.01, share=1),
    Device(speed=5e10, down=1e8, up=2e7, latency=0.03, share=3),
    Device(speed=1e10, down=2e7, up=5e6, latency=0.1, share=4),
    Device(speed=2e9, down=5e6, up=1e6, latency=0.2, share=2),
)


def stragglers(
    devices: tuple[Device, ...] = DEVICES,
    deadline: Positive | None = None,
    jitter: NonNegative = 0.0,
    seed: Natural = 0,
) -> World:
    """seconds = (latency + multiply_adds / speed + 8 bytes_down / down + 8 bytes_up / up) e^(s z)

    s is `jitter` and z a standard normal of the client and the round: the median is that without
    jitter. A client keeps its device, which is drawn from `seed` and its id alone, so that it has
    nothing to do with the architecture, which goes by the id. `deadline` is in virtual seconds;
    None waits for the slowest.
    """
    if not devices:
        raise ValueError("stragglers.devices: should name one device at least, found none; add one")
    shares = torch.tensor([device.share for device in devices], dtype=torch.float64)

    def device(client: int) -> Device:
        drawn = torch.multinomial(shares, 1, generator=stream(seed, SETUP, client, "device"))
        return devices[int(drawn)]

    def seconds(client: int, round_: int, effort: Effort, rng: Generator) -> float:
        own = device(client)
        links = 8 * effort.down / own.down + 8 * effort.up / own.up
        z = torch.randn((), generator=rng, dtype=torch.float64)
        noise = float(torch.exp(jitter * z))
        return (own.latency + effort.multiply_adds / own.speed + links) * noise

    return World(
        participants=lambda round_, clients, rng: range(clients),
        seconds=seconds,
        deadline=deadline,
    )
