"""Tests of the membership and the election."""
