"""Directed tests of the election: one rule each."""

from __future__ import annotations

from meshnn.cluster.candidacy import RANK_S, ROUND_S, turn_s
from meshnn.cluster.effects import LeaderChanged, PersistTerm
from meshnn.cluster.election import LEASE_S, TERM_LEAP, TERM_MAX
from meshnn.cluster.member import DeviceId
from meshnn.cluster.messages import (
    Alive,
    Beat,
    Dead,
    Gossip,
    Lead,
    LeadAck,
    Leave,
    PreVote,
    PreVoteReply,
    Suspect,
    Vote,
    VoteReply,
    Yield,
)
from tests.cluster.stage import Stage, reborn
from tests.cluster.virtual_mesh import device_id, member


def _led(*peers: int) -> Stage:
    """A stage whose machine leads these peers."""
    stage = Stage(*peers)
    stage.win(*peers)
    assert stage.cluster.leader == device_id(0)
    stage.effects.clear()
    return stage


def _answers(stage: Stage) -> list[bool]:
    return [reply.granted for reply in stage.sent(PreVoteReply)]


def test_a_lone_device_leads_itself_within_two_seconds() -> None:
    """Nobody to ask: the term goes to disk, and then it leads."""
    stage = Stage()
    stage.wait(1.6)
    assert stage.all(PersistTerm) == [PersistTerm(1, device_id(0))]
    assert stage.cluster.leader is None
    stage.persist()
    assert stage.all(LeaderChanged) == [LeaderChanged(device_id(0), 1)]


def test_without_its_disk_a_device_never_leads() -> None:
    """A term that cannot be stored elects nobody; the device serves as a follower."""
    stage = Stage()
    stage.wait(60.0)
    assert stage.cluster.leader is None
    assert not stage.sent(Vote)


def test_a_disk_that_refuses_makes_a_follower_that_says_so() -> None:
    """It promises nothing to a candidate and tells it not to wait; it follows; once the disk stores it votes again."""
    stage = Stage(1, 2)
    stage.hear(1, Vote(5))
    stage.note(stage.cluster.on_unpersisted(5, stage.now))
    stage.hear(2, PreVote(6))
    (reply,) = stage.sent(PreVoteReply, 2)
    assert (reply.granted, reply.votes) == (False, False)
    stage.hear(2, Vote(6))
    assert [reply.granted for reply in stage.sent(VoteReply)] == [False]
    stage.wait(30.0, heard=(1, 2))
    assert not stage.sent(PreVote)
    stage.hear(2, Lead(7, 1, 3, 1))
    assert stage.cluster.leader == device_id(2)
    stage.note(stage.cluster.on_persisted(7, stage.now))
    stage.hear(2, PreVote(9))
    assert stage.sent(PreVoteReply, 2)[-1].votes


def test_a_member_that_cannot_vote_is_not_waited_for() -> None:
    """Of two devices the one with a good disk leads, though the other grants nothing; of three one must grant."""
    stage = Stage(1)
    stage.wait(2.5, heard=(1,))
    term = stage.sent(PreVote)[-1].term
    stage.hear(1, PreVoteReply(term, False, 0, votes=False))
    stage.persist()
    assert stage.cluster.leader == device_id(0)
    stage = Stage(1, 2)
    stage.wait(2.5, heard=(1, 2))
    term = stage.sent(PreVote)[-1].term
    stage.hear(1, PreVoteReply(term, False, 0, votes=False))
    assert not stage.all(PersistTerm)
    stage.hear(2, PreVoteReply(term, True, 0))
    stage.persist()
    assert not stage.sent(Vote, 1)
    stage.hear(2, VoteReply(term, True, term))
    assert stage.cluster.leader == device_id(0)


def test_a_vote_leaves_only_after_it_is_stored() -> None:
    """The voter's yes waits for the disk, however often it is asked."""
    stage = Stage(1, 2)
    stage.hear(1, Vote(5))
    stage.hear(1, Vote(5))
    assert stage.all(PersistTerm) == [PersistTerm(5, device_id(1))]
    assert not stage.sent(VoteReply)
    stage.persist()
    assert [(reply.asked, reply.granted) for reply in stage.sent(VoteReply, 1)] == [(5, True)]


def test_a_vote_for_the_leader_already_followed_waits_for_the_disk_too() -> None:
    """Following stores the term; a question that was under way is answered only when that is on disk."""
    stage = Stage(1, 2)
    stage.follow(1, term=5)
    stage.hear(1, Vote(5))
    assert not stage.sent(VoteReply)
    stage.persist()
    assert [reply.granted for reply in stage.sent(VoteReply, 1)] == [True]
    stage.hear(1, Vote(5))
    assert [reply.granted for reply in stage.sent(VoteReply, 1)] == [True, True]


def test_one_vote_a_term_survives_a_restart() -> None:
    """With the stored term and vote, another candidate of that term gets a no, the same one a yes."""
    stage = Stage(1, 2, term=5, voted_for=device_id(1))
    stage.hear(2, Vote(5))
    stage.hear(1, Vote(5))
    assert [reply.granted for reply in stage.sent(VoteReply)] == [False, True]


def test_a_live_lease_refuses_candidates() -> None:
    """While the leader is heard, neither pre-vote nor vote is granted to another, whatever the term."""
    stage = Stage(1, 2)
    stage.follow(1)
    stage.hear(2, PreVote(9))
    stage.hear(2, Vote(9))
    assert _answers(stage) == [False]
    assert [reply.granted for reply in stage.sent(VoteReply)] == [False]


def test_only_the_leaders_heartbeat_renews_the_lease() -> None:
    """Six seconds after the last heartbeat the leader is forgotten, though its pings still come."""
    stage = Stage(1, 2)
    stage.follow(1)
    stage.wait(5.9, heard=(1, 2))
    assert stage.cluster.leader == device_id(1)
    stage.wait(0.2, heard=(1, 2))
    assert stage.cluster.leader is None


def test_a_pre_vote_changes_nothing_at_the_voter() -> None:
    """Asked beforehand, a free voter says yes and stores nothing."""
    stage = Stage(1, 2)
    stage.hear(1, PreVote(1))
    assert _answers(stage) == [True]
    assert stage.all(PersistTerm) == []
    assert stage.cluster.term == 0


def test_a_pre_vote_for_a_term_not_newer_is_refused() -> None:
    """Who asks for a term the voter has passed gets a no with the voter's term."""
    stage = Stage(1, 2, term=5)
    stage.hear(1, PreVote(5))
    reply = stage.sent(PreVoteReply)[0]
    assert (reply.granted, reply.term) == (False, 5)


def test_without_a_majority_of_pre_votes_no_term_is_spent() -> None:
    """Two yeses of five, its own included, store nothing."""
    stage = Stage(1, 2, 3, 4)
    stage.stand(1, 2, 3, 4)
    stage.hear(1, PreVoteReply(1, True, 0))
    stage.wait(3.0, heard=(1, 2, 3, 4))
    assert stage.all(PersistTerm) == []


def test_a_majority_of_the_view_elects() -> None:
    """Three yeses of five in both rounds, and the heartbeat goes to all."""
    stage = Stage(1, 2, 3, 4)
    stage.win(1, 2)
    assert stage.cluster.leader == device_id(0)
    assert all(stage.sent(Lead, peer) for peer in (1, 2, 3, 4))


def test_a_new_term_exceeds_every_term_heard_of() -> None:
    """A refusal with a higher term teaches the candidate, and the next round asks above it."""
    stage = Stage(1, 2)
    stage.stand(1, 2)
    stage.hear(1, PreVoteReply(1, False, 41))
    stage.wait(4.0, heard=(1, 2))
    assert stage.sent(PreVote)[-1].term == 42


def test_a_split_vote_is_over_when_it_cannot_be_won() -> None:
    """Two candidates that refused each other stand again in turn, before their rounds would have ended."""
    stage = Stage(1)
    stage.wait(2.0, heard=(1,))
    asked = stage.sent(PreVote)[-1]
    stage.hear(1, PreVoteReply(asked.term, True, 0))
    stage.persist()
    began, questions = stage.now, len(stage.sent(PreVote))
    stage.hear(1, VoteReply(asked.term, False, asked.term))
    stage.wait(ROUND_S, heard=(1,))
    assert len(stage.sent(PreVote)) > questions
    assert stage.sent(PreVote)[-1].term == asked.term + 1
    assert stage.now - began <= ROUND_S + 0.01


def test_answers_to_another_round_do_not_count() -> None:
    """A late yes to an older term elects nobody."""
    stage = Stage(1, 2, term=3)
    stage.stand(1, 2)
    stage.hear(1, PreVoteReply(3, True, 3))
    stage.hear(2, PreVoteReply(3, True, 3))
    assert stage.all(PersistTerm) == []


def test_the_dead_leaders_lease_is_void() -> None:
    """Membership buried the leader: no need to wait for the lease."""
    stage = Stage(1, 2, 3)
    stage.follow(1)
    stage.tell(2, Dead(device_id(1), 1000, device_id(2)))
    assert stage.cluster.leader is None
    stage.wait(2.0, heard=(2, 3))
    assert stage.sent(PreVote, 2)


def test_a_leader_that_leaves_is_replaced_at_once() -> None:
    """Its goodbye ends its lease."""
    stage = Stage(1, 2)
    stage.follow(1)
    stage.hear(1, Leave(1000))
    assert stage.all(LeaderChanged)[-1].leader is None
    stage.wait(2.0, heard=(2,))
    assert stage.sent(PreVote, 2)


def test_a_restarted_leader_leads_no_more() -> None:
    """The new life of the leader holds nothing of its old lease."""
    stage = Stage(1, 2)
    stage.follow(1)
    stage.tell(2, Alive(reborn(1)))
    assert stage.cluster.leader is None


def test_the_lower_rank_waits_longer() -> None:
    """After the leader's death the fitter member stands first: the lower id here, all else equal."""
    first, last = Stage(1, 2, 3, 4, me=0), Stage(0, 1, 2, 3, me=4)
    for stage, others in ((first, (1, 2, 3)), (last, (0, 1, 2))):
        leader = 4 if stage is first else 3
        stage.follow(leader)
        stage.tell(1, Dead(device_id(leader), 1000, device_id(1)))
        stage.wait(0.6, heard=others)
    assert first.sent(PreVote)
    assert not last.sent(PreVote)


def test_of_those_that_start_together_the_fittest_stands_first() -> None:
    """The others let it ask before they do, or all would ask all."""
    first, last = Stage(1, 2, 3, 4, me=0), Stage(0, 1, 2, 3, me=4)
    for stage, others in ((first, (1, 2, 3, 4)), (last, (0, 1, 2, 3))):
        stage.stand(*others)
    assert last.now - first.now > 3 * RANK_S
    last.hear(0, PreVote(1))
    assert _answers(last) == [True]


def test_in_a_large_mesh_most_wait_until_gossip_can_tell_of_a_winner() -> None:
    """A thousand that start together are at most a dozen candidates in the first two seconds and a half."""
    rows = [member(number) for number in range(1000)]
    ages = {row.device_id: 5.0 for row in rows}
    turns = [turn_s(row.device_id, rows, ages) for row in rows]
    assert sum(turn <= 2.5 for turn in turns) <= 12
    assert sum(turn >= 4.0 for turn in turns) >= 900
    assert len(set(turns)) > 900
    assert max(turns) < LEASE_S


def test_a_join_starts_no_election() -> None:
    """Whoever comes, goes or comes back, a follower with a leader keeps its term and asks nobody."""
    stage = Stage(1, 2)
    stage.follow(1)
    for peer in (5, 6, 7):
        stage.tell(1, Alive(member(peer)))
    stage.tell(1, Dead(device_id(5), 1000, device_id(1)))
    stage.wait(3.0, heard=(1, 2, 6, 7))
    assert not stage.sent(PreVote)
    assert stage.cluster.leader == device_id(1)


def test_a_leader_greets_who_joins() -> None:
    """The newcomer hears of its leader with the next breath."""
    stage = _led(1, 2)
    stage.tell(1, Alive(member(5)))
    assert stage.sent(Lead, 5)


def test_a_leader_without_answers_steps_down() -> None:
    """CheckQuorum: three seconds without acknowledgements from half the view end the leadership."""
    stage = _led(1, 2, 3, 4)
    stage.wait(4.5, heard=(1, 2, 3, 4))
    assert stage.all(LeaderChanged)[0].leader is None


def test_acknowledgements_of_half_the_view_keep_the_leader() -> None:
    """Two followers of four, itself counted, are enough."""
    stage = _led(1, 2, 3, 4)
    for _ in range(20):
        stage.wait(0.5, heard=(1, 2, 3, 4))
        for peer in (1, 2):
            stage.hear(peer, LeadAck(1, True, 1))
    assert stage.cluster.leader == device_id(0)


def test_a_refusal_is_no_acknowledgement() -> None:
    """Members that answer but follow another do not keep a leader in office."""
    stage = _led(1, 2, 3, 4)
    for _ in range(12):
        stage.wait(0.5, heard=(1, 2, 3, 4))
        for peer in (1, 2, 3, 4):
            stage.hear(peer, LeadAck(1, False, 1))
    assert any(change.leader is None for change in stage.all(LeaderChanged))


def test_of_two_a_leader_goes_on_alone() -> None:
    """In a mesh of two a silent follower does not depose its leader."""
    stage = _led(1)
    stage.wait(30.0)
    assert stage.cluster.leader == device_id(0)
    assert stage.all(LeaderChanged) == []


def test_a_leader_that_slept_sends_nothing_in_its_old_office() -> None:
    """After SIGSTOP a leader steps down before it says anything as leader."""
    stage = _led(1, 2, 3, 4)
    stage.suspend(30.0)
    assert stage.all(LeaderChanged)[0].leader is None
    assert not stage.sent(Lead)


def test_who_slept_accuses_nobody_of_silence() -> None:
    """A round of questions slept through is dropped, and no member is suspected for it."""
    stage = Stage(1, 2, 3)
    stage.stand(1, 2, 3)
    stage.suspend(20.0)
    stage.wait(0.2)
    assert all(row.state.value == "alive" for row in stage.cluster.members.values())


def test_a_follower_that_slept_gives_its_leader_time() -> None:
    """The heartbeats missed in one's own sleep are not held against the leader."""
    stage = Stage(1, 2)
    stage.follow(1)
    stage.suspend(30.0)
    assert stage.cluster.leader == device_id(1)


def test_a_stale_leader_is_told_of_the_newer_term() -> None:
    """A heartbeat below the promised term is not followed; the answer names the term."""
    stage = Stage(1, 2, term=7)
    stage.hear(1, Lead(3, 1, 3, 5))
    assert stage.cluster.leader is None
    assert [(ack.follows, ack.term) for ack in stage.sent(LeadAck, 1)] == [(False, 7)]


def test_another_leader_is_not_followed_while_the_lease_lives() -> None:
    """Sticky: a second leader, even of a higher term, is refused until the first yields or falls silent."""
    stage = Stage(1, 2)
    stage.follow(1, term=1)
    stage.follow(2, term=4)
    assert stage.cluster.leader == device_id(1)
    stage.hear(1, Yield(1))
    stage.follow(2, term=4)
    assert (stage.cluster.leader, stage.cluster.term) == (device_id(2), 4)
    assert stage.all(PersistTerm)[-1] == PersistTerm(4, device_id(2))


def test_a_yield_of_somebody_else_changes_nothing() -> None:
    """Only one's own leader can release its followers."""
    stage = Stage(1, 2)
    stage.follow(1)
    stage.hear(2, Yield(1))
    assert stage.cluster.leader == device_id(1)


def test_of_two_leaders_the_one_with_the_larger_view_stays() -> None:
    """A leader that meets a better one steps down at once, releases its followers and follows."""
    stage = _led(1, 2)
    stage.hear(1, Lead(1, 1, 9, 0))
    assert stage.cluster.leader == device_id(1)
    assert stage.sent(Yield, 2)


def test_of_equal_views_the_longer_up_stays() -> None:
    """With equal views the uptime decides, before the id."""
    stage = _led(1, 2)
    stage.hear(1, Lead(1, 1, 3, 60))
    assert stage.cluster.leader == device_id(1)


def test_of_equal_age_the_lower_id_stays() -> None:
    """All else equal, the lower id answers the other's heartbeat with its own, and stays."""
    stage = _led(1, 2)
    age = int(stage.now).bit_length()
    stage.hear(1, Lead(1, 1, 3, age))
    assert stage.cluster.leader == device_id(0)
    assert stage.sent(Lead, 1)


def test_the_survivor_of_a_merge_takes_a_term_above_both() -> None:
    """The better leader of a lower term stays in office and is voted into a higher one."""
    stage = _led(1, 2)
    stage.hear(1, Lead(6, 1, 1, 0))
    assert stage.sent(PreVote)[-1].term == 7
    stage.hear(2, PreVoteReply(7, True, 1))
    stage.persist()
    assert stage.cluster.term == 1
    stage.hear(2, VoteReply(7, True, 7))
    assert (stage.cluster.leader, stage.cluster.term) == (device_id(0), 7)
    assert all(change.leader == device_id(0) for change in stage.all(LeaderChanged))


def test_a_leader_outbids_a_term_that_another_led_in_too() -> None:
    """Work of its own term that outranks its own makes it stand above that term; a follower does not."""
    stage = _led(1, 2)
    stage.note(stage.cluster.outbid(7, stage.now))
    for voter in (1, 2):
        stage.hear(voter, PreVoteReply(8, True, 1))
    stage.persist()
    stage.hear(1, VoteReply(8, True, 8))
    assert (stage.cluster.leader, stage.cluster.term) == (device_id(0), 8)
    follower = Stage(1, 2)
    follower.follow(1, 3)
    follower.note(follower.cluster.outbid(3, follower.now))
    assert follower.sent(PreVote) == []


def test_a_term_beyond_belief_is_not_outbid() -> None:
    """A term that a plan of a stranger claims would leave no higher one for anybody."""
    stage = _led(1, 2)
    term = stage.cluster.term
    for wild in (TERM_MAX, 2**63 - 1, term + TERM_LEAP):
        stage.note(stage.cluster.outbid(wild, stage.now))
    assert stage.sent(PreVote) == []


def test_a_member_that_promised_a_higher_term_lifts_the_leaders() -> None:
    """A newcomer that cannot follow so low a term makes the leader renew its own, not lose its office."""
    stage = _led(1, 2)
    stage.hear(1, LeadAck(1, False, 12))
    assert stage.sent(PreVote)[-1].term == 13
    assert stage.cluster.leader == device_id(0)


def test_followers_grant_their_own_leader() -> None:
    """The lease protects the leader from others, not from its own renewal."""
    stage = Stage(1, 2)
    stage.follow(1)
    stage.hear(1, PreVote(8))
    assert _answers(stage) == [True]


def test_strangers_and_the_dead_have_no_say() -> None:
    """Election messages count only from usable members."""
    stage = Stage(1, 2)
    stage.tell(1, Dead(device_id(2), 1000, device_id(1)))
    stage.hear(9, Lead(5, 1, 9, 9))
    stage.hear(2, Lead(5, 1, 9, 9))
    stage.hear(2, Vote(5))
    assert stage.cluster.leader is None
    assert stage.all(PersistTerm) == []


def test_who_answers_no_candidate_is_accused() -> None:
    """Members silent through a whole round of questions are suspected all at once, not probe by probe."""
    stage = Stage(1, 2, 3, 4, 5)
    stage.follow(1)
    stage.wait(6.0, heard=(2,))
    stage.wait(4.0, heard=(2,))
    assert {row.name for row in stage.cluster.members.values() if row.state.value == "suspect"} >= {
        "device-3",
        "device-4",
        "device-5",
    }
    assert stage.state(2).value == "alive"


def test_a_deaf_device_does_not_elect_itself() -> None:
    """Whom it alone suspects counts in its majority: silence all around is its own trouble, until it goes alone."""
    stage = Stage(1, 2, 3, 4)
    stage.follow(1)
    for _ in range(5):
        stage.wait(1.9)
        stage.hear(1, LeadAck(1, False, 1))
        stage.persist() if stage.all(PersistTerm) else None
    assert {stage.state(peer).value for peer in (2, 3, 4)} == {"suspect"}
    assert stage.cluster.leader is None
    assert not stage.sent(Vote)


def test_whom_others_suspect_too_does_not_count_in_the_majority() -> None:
    """Of five, three are silent, and the fourth says so too: its yes is enough."""
    stage = Stage(1, 2, 3, 4)
    stage.stand(1)
    for silent in (2, 3, 4):
        stage.tell(1, Suspect(device_id(silent), stage.row(silent).incarnation, device_id(1)))
    stage.wait(2.5, heard=(1,))
    stage.hear(1, PreVoteReply(stage.sent(PreVote)[-1].term, True, 0))
    assert stage.all(PersistTerm)


def test_in_a_large_mesh_the_heartbeat_is_gossip() -> None:
    """Above 64 members a beat heard through others renews the lease, and is passed on once."""
    stage = Stage(*range(1, 80))
    boot = member(7).boot_id
    heard = tuple(range(1, 80))
    for number in range(1, 9):
        stage.tell(3, Beat(device_id(7), boot, 4, number))
        stage.wait(1.0, heard)
    assert (stage.cluster.leader, stage.cluster.term) == (device_id(7), 4)
    assert stage.rumours(Beat)
    for _ in range(7):
        stage.tell(3, Beat(device_id(7), boot, 4, 8))
        stage.wait(1.0, heard)
    assert stage.cluster.leader is None


def test_a_beat_of_a_former_life_is_refused() -> None:
    """Gossip that names another boot of the leader renews nothing."""
    stage = Stage(1, 2)
    stage.tell(2, Beat(device_id(1), member(1, 5).boot_id, 4, 1))
    assert stage.cluster.leader is None


def test_a_leader_of_many_beats_directly_to_some() -> None:
    """A leader of eighty greets 64 directly each second, all in turn, and gossips the beat."""
    peers = tuple(range(1, 80))
    stage = _led(*peers)
    stage.wait(1.1, heard=peers)
    assert len(stage.sent(Lead)) == 64
    assert stage.rumours(Beat)


def test_a_story_of_two_leaders() -> None:
    """A transcript: a leader of two meets a leader of five, yields, follows, and is later elected itself."""
    stage = _led(1)
    story: list[tuple[DeviceId | None, int]] = []
    stage.tell(1, Alive(member(2)))
    stage.hear(2, Lead(3, 1, 5, 1))
    stage.wait(7.0, heard=(1, 2))
    stage.stand(1, 2)
    stage.hear(1, PreVoteReply(4, True, 3))
    stage.persist()
    stage.hear(1, VoteReply(4, True, 4))
    story = [(change.leader, change.term) for change in stage.all(LeaderChanged)]
    assert story == [(None, 1), (device_id(2), 3), (None, 3), (device_id(0), 4)]
    assert stage.hear(2, Gossip()) is not None
