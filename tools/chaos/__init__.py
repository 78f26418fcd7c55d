"""Chaos in the rack: real nodes under a seeded schedule of faults, and named scenarios with one figure each."""
