"""FedAvg's declarations, held against real messages."""

import pytest
import torch

from fedkd.contract import consensus
from fedkd.types import Predictions, Traffic, predictions
from fedkd.wire import HEADER_BYTES, decode, encode
from strategies.fedavg import fedavg


def message(parameters: int, examples: int | None) -> Predictions:
    extras = {"weights": (torch.randn(1, parameters),)}
    if examples is not None:
        extras["examples"] = (torch.tensor([examples]),)
    return predictions(torch.zeros(1, 0, 10), "logits", extras=extras)


@pytest.mark.parametrize("parameters", [1, 583_242])
def test_bytes_are_those_of_the_formula(parameters: int) -> None:
    shares, traffic = fedavg().shares, Traffic(0, 10, parameters, 0)
    up, down = encode(message(parameters, 600)), encode(message(parameters, None))
    assert len(up) - HEADER_BYTES == shares.uplink(traffic) == 4 * parameters + 43
    assert len(down) - HEADER_BYTES == shares.downlink(traffic) == 4 * parameters + 19
    assert set(decode(up).extras or {}) == shares.extras


def test_it_says_what_it_is() -> None:
    strategy = fedavg()
    assert strategy.shares.answers is None and strategy.feedback == "weights"
    assert strategy.program == ("train", "average_weights")
    assert strategy.shares.needs == {"one_architecture"}


def test_its_ensemble_is_the_mean_of_probabilities() -> None:
    logits = predictions(torch.tensor([[[0.8, 0.2]], [[0.6, 0.4]]]).log(), "logits")
    found = consensus(fedavg(), logits).result
    torch.testing.assert_close(found.scores, torch.tensor([[[0.7, 0.3]]]))
