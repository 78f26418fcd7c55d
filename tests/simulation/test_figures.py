"""Short versions of the published scenarios: the criteria hold on seeds that nobody tuned for."""

from __future__ import annotations

import time

import pytest

from tools.simulate import lives, views
from tools.simulate.figure import Figure
from tools.simulate.mesh import Mesh

pytestmark = pytest.mark.simulation


def test_a_figure_tells_whether_it_passed() -> None:
    """At most, at least, and without criterion."""
    assert Figure("f", 0.2, 0.5, "x").passed
    assert not Figure("f", 0.6, 0.5, "x").passed
    assert Figure("f", 0.96, 0.95, "", at_least=True).passed
    assert not Figure("f", 0.94, 0.95, "", at_least=True).passed
    assert str(Figure("f", 0.6, 0.5, "x")).startswith("FAIL")


def test_burials_of_one_device_within_half_a_minute_are_one_death() -> None:
    """Views are not deaths."""
    one, other = (host.id for host in Mesh(1, 2, bare=True).hosts)
    assert views.count_deaths([(1.0, other, one), (2.0, other, one), (50.0, other, one), (51.0, one, other)]) == 3


def test_outages_bury_nobody_alive() -> None:
    """Scenario 3, an hour of 16 devices cut to four minutes."""
    assert all(figure.passed for figure in views.outages([901], minutes=4.0))


def test_stalls_bury_nobody_alive() -> None:
    """Scenario 4, four minutes."""
    assert all(figure.passed for figure in views.stalls([901], minutes=4.0))


def test_a_mass_restart_of_forty_is_over_soon() -> None:
    """Scenario 8 with 40 devices: whole within 30 s, nobody stays dead."""
    assert all(figure.passed for figure in views.mass_restart([901], size=40))


def test_both_halves_of_a_partition_serve_and_become_one_again() -> None:
    """Scenario 9 with four devices, 30 s."""
    figures = lives.partitions([901], sizes=(4,), durations_s=(30.0,))
    assert [str(figure) for figure in figures if not figure.passed] == []


def test_a_leader_killed_at_any_step_leaves_a_plan() -> None:
    """Scenario 12: every message of a switch in turn."""
    assert all(figure.passed for figure in lives.switch_deaths([901]))


def test_a_device_killed_at_any_frame_costs_no_request() -> None:
    """Scenario 13: every frame of a request in turn, sender and receiver."""
    assert all(figure.passed for figure in lives.request_deaths([901]))


def test_sleepers_accuse_nobody() -> None:
    """Scenario 16: follower and leader, 1 to 120 s."""
    assert all(figure.passed for figure in lives.sleepers([901]))


def test_sixty_cluster_machines_meet_from_few_addresses() -> None:
    """Each knows four others at its start; gossip and push/pull do the rest."""
    mesh = views.settled(901, 60)
    assert mesh.views_equal()


def test_sixteen_nodes_run_faster_than_the_clock_by_far() -> None:
    """The requirement is 100 times real time on a free core (docs/reliability.md); here only that it is no crawl."""
    mesh = lives.serving(901, 16, lives.SMALL_BYTES)
    begun = time.process_time()
    mesh.ask_all("m", 8.0, mesh.now + 10.0)
    mesh.run(10.0)
    assert time.process_time() - begun < 5.0
