"""A method with the codecs of the config in the place of float32.

From here on they are the method's own: whatever encodes, decodes, counts or foretells bytes asks
the strategy and knows nothing of the config.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, cast

from fedkd import plugins
from fedkd.coding import Chain, Coder, Delta, Link, Quantiser, chained
from fedkd.config import Config, ConfigError, Named
from fedkd.types import Shares, Strategy, Traffic

Way = Literal["up", "down"]


def linked(
    strategy: Strategy, config: Config, classes: int, search: Sequence[str] = ()
) -> Strategy:
    """The strategy with `codecs.up` and `codecs.down`; as it was where they are empty.

    Raises `ConfigError` where it sends nothing that way or has a codec of its own, and for chains
    that fit neither themselves nor what is sent.
    """
    name = config.strategy.name
    if config.codecs.up:
        _free("up", name, strategy.shares.answers is not None, strategy.upload_codec is not None)
        chain = _chain("up", config.codecs.up, classes, search)
        _fits(chain, strategy, name)
        strategy = replace(
            strategy, upload_codec=chain.codec, shares=_shares(strategy.shares, "up", chain)
        )
    if config.codecs.down:
        sends = bool(
            {"distil_clients", "recall"} & set(strategy.program)
        ) and strategy.feedback in (
            "consensus",
            "student",
        )
        _free("down", name, sends, strategy.download_codec is not None)
        chain = _chain("down", config.codecs.down, classes, search)
        strategy = replace(
            strategy, download_codec=chain.codec, shares=_shares(strategy.shares, "down", chain)
        )
    return strategy


def _free(way: Way, name: str, sends: bool, own: bool) -> None:
    found = f"a codec of its own in {name}" if own else f"that {name} sends none that way"
    if own or not sends:
        raise ConfigError(
            f"codecs.{way}: should be for answers that are sent as float32, found {found};"
            f" leave codecs.{way} out or choose another method"
        )


def _chain(way: Way, specs: Sequence[Named], classes: int, search: Sequence[str]) -> Chain:
    where = f"codecs.{way}"
    links = [
        plugins.build(
            "codec",
            spec,
            search=search,
            expect=(Quantiser, Delta, Coder),
            where=where if len(specs) == 1 else f"{where}.{i}",
        )
        for i, spec in enumerate(specs)
    ]
    return chained(cast(list[Link], links), classes, where)


def _fits(chain: Chain, strategy: Strategy, name: str) -> None:
    """What a method says of its uploads is known before anything is sent."""
    answers = strategy.shares.answers
    if answers not in chain.spaces:
        raise ConfigError(
            f"codecs.up: its quantiser is for {' and '.join(sorted(chain.spaces))}, and {name}"
            f" sends {answers}; choose another one, such as uniform or fp16, or another method"
        )
    if chain.remembers and "classes" in strategy.shares.extras:
        raise ConfigError(
            f"codecs.up: delta is for answers about all classes, and {name} declares answers about"
            " some of them; leave delta out"
        )


def _shares(shares: Shares, way: Way, chain: Chain) -> Shares:
    """The method's own formula with the chain's in the place of four bytes a score."""
    varying = shares.varying if chain.fixed else shares.varying | {way}
    if way == "up":
        return replace(shares, uplink=_instead(shares.uplink, chain), varying=varying)
    return replace(shares, downlink=_instead(shares.downlink, chain), varying=varying)


def _instead(own: Callable[[Traffic], int], chain: Chain) -> Callable[[Traffic], int]:
    def length(t: Traffic) -> int:
        return own(t) - 4 * t.rows * t.classes + chain.length(t.rows, t.classes)

    return length
