"""Codecs by name, one module a kind of link: every public function is one.

Each gives a link of `fedkd.coding`; a list of them in the config is a chain.
"""

from fedkd.codecs.lossless import delta, range_coder
from fedkd.codecs.lossy import bf16, fp16, simplex, topk, uniform

__all__ = ["bf16", "delta", "fp16", "range_coder", "simplex", "topk", "uniform"]
