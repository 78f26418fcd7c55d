"""The node: pure machines that decide, and the thin edge that does what they say."""
