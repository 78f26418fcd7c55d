"""A deterministic simulator: the real machines of meshnn on a virtual clock, in a world that fails on purpose."""
