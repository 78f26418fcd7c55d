"""Makes models: the seeded classifier of the demo and tests, without TensorFlow."""
