"""Whose turn it is, by a clock of the test's own."""

from scrapers.fetch import schedule as module
from scrapers.fetch.schedule import DOWN_AFTER, DOWN_S, Schedule
from scrapers.types import Reason, Verdict

REFUSED = Verdict(Reason.CONNECT_REFUSED)
BUSY = Verdict(Reason.HTTP_429)


def make(concurrency: int = 100, per_host: int = 4, delay_s: float = 0.0, max_wait_s: float = 120.0) -> Schedule[str]:
    return Schedule(concurrency, lambda host: per_host, delay_s, max_wait_s)


def filled(schedule: Schedule[str], **hosts: int) -> Schedule[str]:
    for host, number in hosts.items():
        for n in range(number):
            schedule.add(host, f"{host}{n}")
    return schedule


def take(schedule: Schedule[str], now: float = 0.0) -> list[str]:
    """Begin everything that may begin."""
    jobs = []
    while started := schedule.next(now):
        jobs.append(started[1])
    return jobs


def test_hosts_take_turns_within_their_limits() -> None:
    schedule = filled(make(per_host=2), a=5, b=1, c=3)
    assert schedule.num_waiting == 9
    assert take(schedule) == ["a0", "b0", "c0", "a1", "c1"]
    assert schedule.num_active == 5 and schedule.num_waiting == 4
    schedule.ended("a", None, 0.0)
    assert take(schedule) == ["a2"]
    schedule.ended("b", None, 0.0)
    assert take(schedule) == []


def test_the_limit_of_all() -> None:
    schedule = filled(make(concurrency=3), a=4, b=4)
    assert take(schedule) == ["a0", "b0", "a1"]
    schedule.ended("b", None, 0.0)
    assert take(schedule) == ["b1"]


def test_jobs_that_wait_for_their_time() -> None:
    schedule = make(per_host=1)
    schedule.add("a", "later", at=5.0)
    schedule.add("a", "now")
    schedule.add("a", "soon")
    assert schedule.next_time() == 5.0 and schedule.num_waiting == 3
    assert take(schedule) == ["now"]
    schedule.ended("a", None, 5.0)
    assert take(schedule, 5.0) == ["later"]  # it has waited long enough
    schedule.ended("a", None, 5.0)
    schedule.add("a", "first", first=True)
    assert take(schedule, 5.0) == ["first"] and schedule.next_time() is None


def test_a_busy_host_is_asked_less_and_grows_back() -> None:
    schedule = filled(make(per_host=8), a=100)
    assert len(take(schedule)) == 8
    schedule.ended("a", BUSY, 0.0, throttled=True)
    for _ in range(7):
        schedule.ended("a", None, 0.0)
    assert take(schedule, 0.9) == []  # a second's rest, as it did not say how long
    at_once = []
    now = 1.0
    for _ in range(8):
        begun = take(schedule, now)
        at_once.append(schedule.num_active)
        for _ in begun:
            schedule.ended("a", None, now)
    assert at_once[0] in (4, 5) and at_once == sorted(at_once) and at_once[-1] == 8
    for _ in range(5):  # however often: one remains
        schedule.ended("a", BUSY, now, throttled=True) if take(schedule, now) else None
        now += 100
    schedule = filled(make(per_host=8), a=9)
    begun = take(schedule)
    for _ in begun:
        schedule.ended("a", BUSY, 0.0, throttled=True)
    assert len(take(schedule, 100.0)) == 1


def test_retry_after_holds_the_host_and_nobody_else() -> None:
    schedule = filled(make(), a=2, b=1)
    assert schedule.next(0.0) == ("a", "a0")
    schedule.ended("a", Verdict(Reason.HTTP_5XX, "503", retry_after_s=30.0), 10.0, throttled=True)
    assert take(schedule, 10.0) == ["b0"]
    assert schedule.next_time() == 40.0
    assert take(schedule, 39.9) == [] and take(schedule, 40.0) == ["a1"]


def test_two_long_waits_close_a_host() -> None:
    schedule = filled(make(max_wait_s=60.0), a=6)
    long = Verdict(Reason.HTTP_429, retry_after_s=500.0)
    take(schedule)
    schedule.ended("a", long, 0.0, throttled=True)
    assert schedule.obstacle("a", 0.0) is None
    schedule.ended("a", None, 0.0)
    schedule.ended("a", long, 0.0, throttled=True)
    assert schedule.obstacle("a", 0.0) is None  # not in a row
    schedule.ended("a", long, 5.0, throttled=True)
    closed = schedule.obstacle("a", 100.0)
    assert closed is not None and closed.reason is Reason.HTTP_429 and closed.retry_after_s == 405.0
    assert schedule.obstacle("a", 505.0) is None


def test_pauses_between_requests() -> None:
    schedule = filled(make(delay_s=2.0), a=3, b=1)
    assert take(schedule, 0.0) == ["a0", "b0"]
    assert take(schedule, 1.9) == [] and take(schedule, 2.0) == ["a1"]
    assert schedule.delay_of("a") == 0.0
    schedule.crawl_delay("a", 5.0)
    schedule.crawl_delay("a", 1.0)
    assert schedule.delay_of("a") == 5.0
    schedule.ended("a", None, 2.0)
    assert take(schedule, 4.0) == []  # one at a time
    schedule.ended("a", None, 4.0)
    assert take(schedule, 4.0) == ["a2"]


def test_a_host_that_is_down() -> None:
    schedule = filled(make(per_host=1), a=20)
    for n in range(DOWN_AFTER):
        assert schedule.next(float(n)) is not None and schedule.obstacle("a", float(n)) is None
        schedule.ended("a", REFUSED, float(n))
    assert schedule.next(9.0) is not None
    down = schedule.obstacle("a", 9.0)
    assert down is not None and down.reason is Reason.HOST_DOWN
    schedule.ended("a", down, 9.0)
    assert schedule.obstacle("a", DOWN_S) is not None  # to find it down does not bring it up
    assert schedule.obstacle("a", DOWN_AFTER - 1 + DOWN_S) is None
    schedule.next(700.0)
    schedule.ended("a", None, 700.0)
    for _ in range(DOWN_AFTER - 1):
        schedule.next(700.0)
        schedule.ended("a", REFUSED, 700.0)
    schedule.next(700.0)
    schedule.ended("a", Verdict(Reason.HTTP_404), 700.0)  # an answer is an answer
    schedule.next(700.0)
    schedule.ended("a", REFUSED, 700.0)
    assert schedule.obstacle("a", 700.0) is None


def test_hosts_at_rest_are_forgotten(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(module, "_SWEEP_HOSTS", 10)
    schedule = make(per_host=2)
    schedule._sweep_at = 10
    schedule.add("down", "x")
    schedule.next(0.0)
    schedule.ended("down", REFUSED, 0.0)
    schedule.add("slowed", "x")
    schedule.next(0.0)
    schedule.ended("slowed", BUSY, 0.0, throttled=True)
    schedule.add("busy", "x")
    assert schedule.next(0.0) == ("busy", "x")
    schedule.add("waiting", "later", at=50.0)
    for n in range(100):
        schedule.add(f"h{n}", "x")
        schedule.next(0.0)
        schedule.ended(f"h{n}", None, 0.0)
    assert {"down", "slowed", "busy"} <= set(schedule._hosts) and len(schedule._hosts) < 30
    assert take(schedule, 60.0) == ["later"]
    schedule.ended("busy", None, 60.0)
    assert schedule.num_active == 1 and schedule.num_waiting == 0
