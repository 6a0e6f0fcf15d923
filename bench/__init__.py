"""Measurements beside peers: the same traffic over several topologies, alternating in one run."""
