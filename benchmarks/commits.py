"""The other side: `python -m benchmarks.commits CONFIG DATA OUT`, the same run with one commit.

Ours commits every round as it stands, this one the last alone: their ratio is what it costs to lose
no more than a round.
"""

from __future__ import annotations

import sys

from benchmarks import ours

if __name__ == "__main__":
    ours.main(*sys.argv[1:], overrides=["execution.commit_every=1000000"])
