"""What is done with a run beside its rounds: figures, hashes, provenance, and the way back in."""
