"""KuLSIF and the classifier of own against public: their equations, and what they are used for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from fedkd.densities import gaussian_kernel, kulsif, own_or_public, sensitivity


def normal(seed: int, n: int, d: int, shift: float = 0.0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=rng) + shift


def test_kernel_worked_by_hand() -> None:
    a, b = torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 0.0]])
    expected = torch.tensor([[1.0], [torch.e ** (-25 / 8)]])
    torch.testing.assert_close(gaussian_kernel(a, b, 2.0), expected)


@given(st.integers(0, 2**32), st.floats(0.5, 5), st.floats(0.01, 1))
@settings(max_examples=25, deadline=None)
def test_SF5_the_ratio_minimises_its_objective(seed: int, width: float, lam: float) -> None:
    """r = argmin 1/(2n) sum r(x)^2 - 1/m sum r(y) + lam/2 |r|^2: its normal equations hold.

    Over r = sum_i a_i k(., u_i) on all points u, the gradient of the objective is zero.
    """
    y, x = normal(seed, 7, 3).double(), normal(seed + 1, 11, 3, 1.0).double()
    ratio = kulsif(y, x, width, lam)
    # read the coefficients off from the values, by the kernel matrix of all points
    u = torch.cat([x, y])
    k_xu, k_yu = gaussian_kernel(x, u, width), gaussian_kernel(y, u, width)
    values = ratio(x)
    # gradient by the function itself: r(x_i)/n k(x_i, .) - 1/m k(y_j, .) + lam r = 0 at all points
    at = ratio(u)
    residual = k_xu.T @ values / len(x) - k_yu.mean(0) + lam * at
    assert float(residual.abs().max()) < 1e-8


def test_what_was_released_solves_other_equations() -> None:
    y, x = normal(0, 20, 2), normal(1, 30, 2, 1.0)
    right, released = kulsif(y, x, 1.0, 0.1), kulsif(y, x, 1.0, 0.1, released=True)
    assert float((right(x) - released(x)).abs().max()) > 0.1


def test_the_ratio_is_larger_where_the_own_data_lie() -> None:
    own, elsewhere = normal(0, 100, 4), normal(1, 100, 4, 3.0)
    auxiliary = torch.rand(200, 4, generator=torch.Generator().manual_seed(2)) * 12 - 4
    ratio = kulsif(own, auxiliary, 2.0, 200**-0.5)
    assert float(ratio(normal(3, 50, 4)).min()) > float(ratio(elsewhere).mean())


def test_A5_the_regression_is_the_one_that_the_sensitivity_belongs_to() -> None:
    """Mean loss + lam/2 |w|^2 over samples of norm at most 1: its gradient is zero at w."""
    own, public, lam = normal(0, 40, 3, 0.5), normal(1, 60, 3), 0.01
    likeness = own_or_public(own, public, lam)
    z = torch.cat([own, public]).double()
    z = z / z.norm(dim=1, keepdim=True).clamp_min(1)
    z = torch.cat([z, torch.ones(len(z), 1, dtype=torch.float64)], 1) / 2**0.5
    assert float(z.norm(dim=1).max()) <= 1 + 1e-12
    truth = torch.cat([torch.ones(40), torch.zeros(60)]).double()
    p = likeness(torch.cat([own, public]))
    w = torch.linalg.lstsq(z, torch.logit(p).unsqueeze(1)).solution.squeeze(1)
    gradient = z.T @ (p - truth) / len(z) + lam * w
    assert float(gradient.abs().max()) < 1e-5
    # the other reading of lam, as released: C = 1/lam is 1/(n lam) with lam/n
    other = LogisticRegression(C=1 / lam, fit_intercept=False).fit(z.numpy(), truth.numpy())
    assert abs(other.coef_).max() > 1.3 * float(w.abs().max())
    assert sensitivity(200, lam) == sensitivity(100, lam) / 2


def test_A7_noise_comes_from_the_stream_alone() -> None:
    own, public = normal(0, 10, 3), normal(1, 10, 3)
    streams = [torch.Generator().manual_seed(s) for s in (1, 1, 2)]
    one, same, other = (own_or_public(own, public, 0.1, 0.5, s)(public) for s in streams)
    assert torch.equal(one, same) and not torch.equal(one, other)
    near = own_or_public(own, public, 0.1, 1e-9, torch.Generator().manual_seed(1))(public)
    torch.testing.assert_close(near, own_or_public(own, public, 0.1)(public))


def test_A4_scores_lie_between_0_and_1_whatever_the_features() -> None:
    likeness = own_or_public(1e6 * normal(0, 5, 2), normal(1, 5, 2), 1e-3)
    p = likeness(torch.tensor([[1e9, -1e9], [0.0, 0.0]]))
    assert bool(((p > 0) & (p < 1)).all())


def test_one_sample_against_one() -> None:
    assert kulsif(torch.zeros(1, 2), torch.ones(1, 2), 1.0, 0.5)(torch.zeros(3, 2)).shape == (3,)
    assert own_or_public(torch.zeros(1, 2), torch.ones(1, 2), 0.5)(torch.zeros(3, 2)).shape == (3,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_are_taken_flat_by_the_classifier(dtype: torch.dtype) -> None:
    own, public = torch.rand(4, 1, 2, 2, dtype=dtype), torch.rand(4, 1, 2, 2, dtype=dtype)
    assert own_or_public(own, public, 0.1)(public).shape == (4,)
