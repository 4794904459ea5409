"""All clients take part in every round and learn in every round."""

from fedkd.types import World


def everyone() -> World:
    """Nobody is left out and nothing goes wrong."""
    return World(participants=lambda round_, clients, rng: range(clients))
