"""Seeded fuzzing of every border of a node: what strangers, disks and people send may only be refused."""
