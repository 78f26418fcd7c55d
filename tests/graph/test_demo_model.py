"""The demo's classifier: the same file everywhere, alive, cut exactly."""

from __future__ import annotations

import dataclasses

import numpy as np

from meshnn.graph.builder import random_inputs
from meshnn.graph.describe import card_of
from tools.build_models.demo import demo_graph, demo_model
from tools.run_graph import run_graph


def test_the_demo_model_is_the_same_file_every_time() -> None:
    """One seed, one file of about four megabytes; another seed, another file."""
    data = demo_model()
    assert data == demo_model()
    assert 3_500_000 < len(data) < 4_500_000
    assert demo_model(1) != data


def test_the_demo_model_is_alive_and_of_the_promised_shape() -> None:
    """Some 30 operators with residuals and depthwise; its logits take many values and its answer is not flat."""
    graph = demo_graph()
    kinds = [operator.kind for operator in graph.operators]
    assert 28 <= len(kinds) <= 40
    assert kinds.count("ADD") >= 4
    assert kinds.count("DEPTHWISE_CONV_2D") >= 6
    logits = graph.operators[-2].outputs[0]
    probe = dataclasses.replace(graph, outputs=(logits, *graph.outputs))
    made = run_graph(probe, random_inputs(graph, np.random.default_rng(0)))
    assert len(np.unique(made[logits])) > 100
    assert len(np.unique(made[graph.outputs[0]])) > 3


def test_three_small_devices_must_share_the_demo_model() -> None:
    """It needs more than twice its weights in memory: more than 7.5 MB, so that devices of 4 MB must share it."""
    card = card_of(demo_graph(), "", 0, "demo")
    last = len(card.operators) - 1
    assert 2 * card.weight_bytes(0, last) + card.arena_bytes(0, last) > 7_500_000
