"""Tests of the planner: routes, costs, the search, plan sets."""
