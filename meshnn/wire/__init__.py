"""Bytes: frames, messages, datagrams and tensors as they travel; no I/O."""
