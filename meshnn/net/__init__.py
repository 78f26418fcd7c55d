"""Sockets: finding peers, knowing who they are, and moving messages and tensors between them."""
