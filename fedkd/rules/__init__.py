"""How answers become a consensus: weightings and robust rules, parts of any method.

Every documented function of these modules is a rule by name for `combine`. It returns a `Linear` or
a `Transform`, and names the traits that it adds to a method.
"""

from fedkd.rules.guards import expguard
from fedkd.rules.robust import (
    geometric_median,
    krum,
    median,
    multi_krum,
    spectral_filter,
    trimmed_mean,
)
from fedkd.rules.weightings import (
    aekd,
    ca_mkd,
    confidence,
    ebkd,
    entropy,
    geometric_mean,
    mean,
    public_accuracy,
    variance,
)

__all__ = [
    "aekd",
    "ca_mkd",
    "confidence",
    "ebkd",
    "entropy",
    "expguard",
    "geometric_mean",
    "geometric_median",
    "krum",
    "mean",
    "median",
    "multi_krum",
    "public_accuracy",
    "spectral_filter",
    "trimmed_mean",
    "variance",
]
