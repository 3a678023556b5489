"""Which worker gets a request."""

from collections import Counter

from rollout.endpoints.routing import COOL_DOWN_SECONDS, Endpoint, Router

NOW = 1000.0


def _workers(*in_flight: int) -> list[Endpoint]:
    return [Endpoint(url=f"w{i}", in_flight=load) for i, load in enumerate(in_flight)]


def _choose(router: Router, workers: list[Endpoint], context: str = "c", now: float = NOW, **failures: int):
    by_worker = Counter({worker: failures.get(worker.url, 0) for worker in workers})
    chosen = router.choose(workers, context, by_worker, now)
    return chosen and chosen.url


def test_a_new_context_goes_to_the_least_loaded():
    assert _choose(Router(), _workers(3, 1, 2)) == "w1"


def test_a_known_context_goes_to_its_holder_even_if_that_is_busier():
    router, workers = Router(), _workers(0, 1)
    assert _choose(router, workers) == "w0"
    workers[0].in_flight = 9
    assert _choose(router, workers) == "w0"


def test_an_overloaded_holder_is_passed_over_and_the_next_one_holds():
    router, workers = Router(), _workers(0, 8)
    assert _choose(router, workers) == "w0"
    workers[0].in_flight = 19  # more than 1.25 * 8 + 8
    assert _choose(router, workers) == "w1"
    workers[0].in_flight = 0
    assert _choose(router, workers) == "w1"


def test_a_holder_that_failed_is_avoided_until_it_cooled_down():
    router, workers = Router(), _workers(0, 5)
    assert _choose(router, workers, "mine") == "w0"
    workers[0].failed(NOW, retry_after=0.0)
    assert _choose(router, workers, "other") == "w1"
    assert _choose(router, workers, "mine", now=NOW + COOL_DOWN_SECONDS + 0.1) == "w0"


def test_a_worker_that_failed_this_request_comes_last():
    assert _choose(Router(), _workers(0, 50), w0=1) == "w1"
    assert _choose(Router(), _workers(0, 50), w0=1, w1=2) == "w0"


def test_a_worker_that_is_down_or_lost_gets_nothing():
    workers = _workers(0, 9, 5)
    workers[0].is_down = True
    workers[2].lost = "gone"
    assert _choose(Router(), workers) == "w1"
    workers[1].is_down = True
    assert _choose(Router(), workers) is None


def test_a_worker_that_asked_for_a_pause_is_avoided_for_that_long():
    workers = _workers(0, 9)
    workers[0].failed(NOW, retry_after=60.0)
    assert _choose(Router(), workers, "a", now=NOW + 59) == "w1"
    assert _choose(Router(), workers, "b", now=NOW + 61) == "w0"


def test_only_the_contexts_used_last_are_remembered():
    router, workers = Router(capacity=2), _workers(0, 0)
    for context in ("a", "b", "c"):
        workers[0].in_flight = 0
        assert _choose(router, workers, context) == "w0"
    workers[0].in_flight = 1
    assert _choose(router, workers, "c") == "w0"
    assert _choose(router, workers, "a") == "w1"
