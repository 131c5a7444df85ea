from collections import defaultdict, deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpcd.core.lanes import Lanes

PROPERTY = settings(max_examples=40, deadline=None)


def test_the_first_job_of_a_key_has_its_lane_at_once() -> None:
    assert Lanes[str]().enter("k", "a") is True


def test_a_second_job_of_the_same_key_is_parked() -> None:
    lanes = Lanes[str]()
    lanes.enter("k", "a")
    assert (lanes.enter("k", "b"), list(lanes.waiting())) == (False, ["b"])


def test_other_keys_do_not_wait() -> None:
    lanes = Lanes[str]()
    assert [lanes.enter(key, "job") for key in ("k", "l", None, 1, ("a", 2))] == [True] * 5


def test_leaving_hands_the_lane_to_the_next_in_line() -> None:
    lanes = Lanes[str]()
    for job in "abc":
        lanes.enter("k", job)
    assert [lanes.leave("k"), lanes.leave("k"), lanes.leave("k")] == ["b", "c", None]


def test_an_idle_key_is_forgotten() -> None:
    lanes = Lanes[str]()
    lanes.enter("k", "a")
    lanes.leave("k")
    assert len(lanes) == 0


def test_a_forgotten_key_starts_anew() -> None:
    lanes = Lanes[str]()
    lanes.enter("k", "a")
    lanes.leave("k")
    assert lanes.enter("k", "b") is True


def test_leaving_a_lane_that_nobody_has_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        Lanes[str]().leave("k")


def test_a_job_that_is_none_of_the_python_truths_is_still_a_job() -> None:
    lanes = Lanes[int]()
    lanes.enter("k", 1)
    lanes.enter("k", 0)
    assert (lanes.leave("k"), len(lanes)) == (0, 1)


def test_clearing_takes_out_what_is_parked_lane_by_lane_in_order() -> None:
    lanes = Lanes[str]()
    for key, job in [("k", "k1"), ("l", "l1"), ("k", "k2"), ("l", "l2"), ("k", "k3")]:
        lanes.enter(key, job)
    assert (lanes.clear(), list(lanes.waiting())) == (["k2", "k3", "l2"], [])


def test_clearing_leaves_running_jobs_their_lanes() -> None:
    lanes = Lanes[str]()
    lanes.enter("k", "a")
    lanes.enter("k", "b")
    lanes.clear()
    assert (lanes.enter("k", "c"), lanes.leave("k")) == (False, "c")


def test_removing_leaves_the_others_their_places_and_running_jobs_their_lanes() -> None:
    lanes = Lanes[str]()
    for key, job in [("k", "k1"), ("l", "l1"), ("k", "k2"), ("l", "l2"), ("k", "k3"), ("k", "k4")]:
        lanes.enter(key, job)
    assert lanes.remove(lambda job: job in ("k1", "k3", "l1", "l2")) == ["k3", "l2"]
    assert [lanes.leave("k"), lanes.leave("k"), lanes.leave("k"), lanes.leave("l")] == ["k2", "k4", None, None]
    assert len(lanes) == 0


STEPS = st.lists(
    st.tuples(st.sampled_from(["enter", "enter", "enter", "leave", "clear", "remove"]), st.sampled_from("klm")), max_size=60
)


@PROPERTY
@given(STEPS)
def test_one_at_a_time_per_key_in_order_nothing_lost_and_empty_at_the_end(steps: list[tuple[str, str]]) -> None:
    lanes = Lanes[int]()
    running: dict[str, int] = {}
    line: dict[str, deque[int]] = defaultdict(deque)  # what must come next, per key
    came, ended = 0, []

    def leave(key: str) -> None:
        ended.append(running.pop(key))
        following = lanes.leave(key)
        assert following == (line[key].popleft() if line[key] else None)
        if following is not None:
            running[key] = following

    for what, key in steps:
        if what == "enter":
            came += 1
            if lanes.enter(key, came):
                assert key not in running
                running[key] = came
            else:
                assert key in running
                line[key].append(came)
        elif what == "leave" and key in running:
            leave(key)
        elif what == "clear":
            cleared = lanes.clear()
            assert sorted(cleared) == sorted(job for jobs in line.values() for job in jobs)
            ended += cleared
            line.clear()
        elif what == "remove":
            odd = sorted(job for jobs in line.values() for job in jobs if job % 2)
            assert sorted(lanes.remove(lambda job: bool(job % 2))) == odd
            ended += odd
            line = defaultdict(deque, {each: deque(job for job in jobs if not job % 2) for each, jobs in line.items()})
        assert len(lanes) == len(running)
        assert sorted(lanes.waiting()) == sorted(job for jobs in line.values() for job in jobs)
    while running:
        leave(next(iter(running)))
    assert sorted(ended) == list(range(1, came + 1))
    assert (len(lanes), list(lanes.waiting())) == (0, [])


def test_fault_43_a_hundred_thousand_keys_leave_nothing_behind() -> None:
    lanes: Lanes[int] = Lanes()
    for number in range(100_000):
        assert lanes.enter(f"key {number}", number)
        assert not lanes.enter(f"key {number}", -number)
        assert lanes.leave(f"key {number}") == -number
        assert lanes.leave(f"key {number}") is None
    assert len(lanes) == 0
