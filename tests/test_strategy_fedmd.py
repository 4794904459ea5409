"""FedMD's invariants FM1 to FM5."""

import pytest
import torch

from fedkd.contract import consensus, uploaded
from fedkd.losses import probabilities
from fedkd.types import Predictions, Target, predictions
from fedkd.wire import HEADER_BYTES, decode, encode
from strategies.fedmd import fedmd


def scores(parties: int = 3, rows: int = 4, classes: int = 5) -> Predictions:
    rng = torch.Generator().manual_seed(1)
    return predictions(5 * torch.randn(parties, rows, classes, generator=rng), "logits")


def test_fm1_the_consensus_is_the_mean_of_logits() -> None:
    p = predictions(torch.tensor([[[4.0, -2.0]], [[0.0, 3.0]]]), "logits")
    found = consensus(fedmd(), p).result
    assert found.space == "logits" and found.scores.tolist() == [[[2.0, 0.5]]]


def test_fm2_identical_clients_have_nothing_to_digest() -> None:
    p = predictions(scores(1).scores.expand(4, -1, -1), "logits")
    found = consensus(fedmd(), p).result
    digest = fedmd().losses.client
    assert digest is not None
    assert float(digest(p.scores[0], Target(found.scores[0], "logits", None)).max()) < 1e-6


def test_fm3_fm4_a_message_is_logits_and_nothing_else() -> None:
    strategy = fedmd()
    ask = strategy.request({}, 1, scores(1, 6000, 10).rows, [0], torch.Generator())
    sent = uploaded(strategy, scores(1, len(ask.rows), 10))
    payload = encode(sent)
    assert len(payload) == HEADER_BYTES + 5000 * 10 * 32 // 8
    assert decode(payload).extras is None and strategy.shares.extras == frozenset()


def test_fm5_a_constant_on_one_client_moves_the_target_but_not_its_softmax() -> None:
    p = scores()
    moved = predictions(p.scores.clone(), "logits")
    moved.scores[0] += 30
    before, after = (consensus(fedmd(), q).result.scores for q in (p, moved))
    torch.testing.assert_close(after - before, torch.full_like(before, 10.0))
    labels = (probabilities(q, "logits", 1.0) for q in (before, after))
    torch.testing.assert_close(*labels)


def test_the_digest_is_the_mean_absolute_error() -> None:
    digest = fedmd().losses.client
    assert digest is not None
    target = Target(torch.tensor([[1.0, -1.0]]), "logits", None)
    assert digest(torch.tensor([[0.0, 2.0]]), target).item() == 2.0


@pytest.mark.parametrize(
    ("settings", "program", "needs"),
    [
        ({}, "distil_clients train answer combine distil_server", set()),
        ({"student": False}, "distil_clients train answer combine", set()),
        (
            {"pretrain": True, "student": False},
            "pretrain distil_clients train answer combine",
            {"public_labels"},
        ),
    ],
)
def test_the_program(settings: dict[str, bool], program: str, needs: set[str]) -> None:
    strategy = fedmd(**settings)
    assert strategy.program == tuple(program.split()) and strategy.shares.needs == needs
