"""Teachers that learn at first and then only answer: multi-teacher distillation, not federation."""

from fedkd.types import Count, World


def frozen_teachers(until: Count = 1) -> World:
    """All take part; a teacher learns up to and including round `until` and stays as it is after.

    With rounds: 1 this is plain multi-teacher distillation; with more, the same teachers are asked
    again and only the student goes on.
    """
    return World(
        participants=lambda round_, clients, rng: range(clients),
        learns=lambda client, round_: round_ <= until,
    )
