"""How much a public sample looks like a client's own data: density ratios and classifiers.

For `annotate` of methods that weigh or select by them. Features are float [n, d] on any device; the
arithmetic is float64 on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor


def gaussian_kernel(a: Tensor, b: Tensor, width: float) -> Tensor:
    """exp(-|a_i - b_j|^2 / (2 width^2)), [n, m]; memory is that of the result."""
    squared = a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T
    return torch.exp(-squared.clamp_min(0) / (2 * width**2))


def kulsif(
    own: Tensor, auxiliary: Tensor, width: float, lam: float, released: bool = False
) -> Callable[[Tensor], Tensor]:
    """The ratio r(z) = p_own(z) / q_auxiliary(z), fitted by unconstrained least squares.

    T. Kanamori, T. Suzuki, M. Sugiyama, "Statistical analysis of kernel-based least-squares
    density-ratio estimation", Machine Learning 86, 2012: over a Gaussian kernel k, with n auxiliary
    points x and m own points y,

        r(z) = sum_i alpha_i k(z, x_i) + (1 / (m lam)) sum_j k(z, y_j)
        (K_xx / n + lam I) alpha = -K_xy 1 / (n m lam)

    `own` [m, d], `auxiliary` [n, d]; the result maps [b, d] to [b]. `released` multiplies by the
    matrix where it should be solved for, as released code that is in use does.
    """
    x, y = auxiliary.double().cpu(), own.double().cpu()
    n, m = len(x), len(y)
    system = gaussian_kernel(x, x, width) / n + lam * torch.eye(n, dtype=torch.float64)
    right = -gaussian_kernel(x, y, width).sum(1) / (n * m * lam)
    alpha = system @ right if released else torch.linalg.solve(system, right)

    def ratio(points: Tensor) -> Tensor:
        z = points.double().cpu()
        return gaussian_kernel(z, x, width) @ alpha + gaussian_kernel(z, y, width).mean(1) / lam

    return ratio


def own_or_public(
    own: Tensor,
    public: Tensor,
    lam: float,
    sigma: float = 0.0,
    rng: Generator | None = None,
) -> Callable[[Tensor], Tensor]:
    """P(own | z) by logistic regression: mean log-loss + lam/2 |w|^2, the intercept inside w.

    `own` [m, d] against `public` [n, d]; the result maps [b, d] to [b] in (0, 1). Every sample is
    scaled down to norm at most 1 with the constant feature included, a bound that does not depend
    on the data, so that one record of the m + n changes w by at most 2 / ((m + n) lam) in L2,
    replaced (K. Chaudhuri, C. Monteleoni, A. D. Sarwate, JMLR 12, 2011) or left out: the gradient
    of the mean then moves by 1 / N for the record and by as much for dividing by N - 1. `sigma` is
    the standard deviation of the Gaussian noise on each coefficient, drawn from `rng`.
    """
    from sklearn.linear_model import LogisticRegression

    samples = _bounded(torch.cat([own, public]))
    labels = torch.cat([torch.ones(len(own)), torch.zeros(len(public))])
    fitted = LogisticRegression(
        C=1 / (len(samples) * lam), fit_intercept=False, tol=1e-8, max_iter=1000
    ).fit(samples.numpy(), labels.numpy())
    weights = torch.from_numpy(fitted.coef_[0].copy())
    if sigma:
        weights = weights + sigma * torch.randn(len(weights), generator=rng, dtype=torch.float64)
    return lambda points: torch.sigmoid(_bounded(points) @ weights)


def sensitivity(samples: int, lam: float) -> float:
    """The L2 sensitivity of the coefficients of `own_or_public` to one of its samples."""
    return 2 / (samples * lam)


def _bounded(points: Tensor) -> Tensor:
    """[b, d] to [b, d + 1] with a constant feature, of norm at most 1."""
    z = points.double().cpu().flatten(1)
    z = z / z.norm(dim=1, keepdim=True).clamp_min(1)
    return torch.cat([z, torch.ones(len(z), 1, dtype=torch.float64)], 1) / 2**0.5
