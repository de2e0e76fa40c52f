"""Retrieval ahead of time gives what retrieval when asked gives, whatever becomes of the thread."""

import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from semievol.backends.ahead import Found, RetrieverAhead
from semievol.backends.embedders import FEW_QUERIES, retrieval_device
from semievol.backends.local import LocalBackend
from semievol.ports import Progress, no_progress
from semievol.recipe import ModelSettings, Recipe
from tests.demo_model import BASE

GROUPS = [["the parcel is late", "no parcel came"], ["the card was charged twice"], ["reset my password"]]
DOCUMENTS = ["where is my parcel", "I paid two times", "I forgot the password"]


class Counting:
    """Neighbours that tell the call they come from; `before` is called with the progress amid each."""

    def __init__(self, progress: Progress = no_progress) -> None:
        self.asked: list[list[str]] = []
        self.progress = progress
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def nearest(self, queries: Sequence[str], k: int) -> Found:
        self.asked.append(list(queries))
        self.reached.set()
        assert self.go_on.wait(10)
        self.progress(len(queries), len(queries))
        return np.full((len(queries), k), len(self.asked)), np.zeros((len(queries), k), np.float32)


def counting(made: list[Counting]) -> RetrieverAhead:
    def build(progress: Progress) -> Counting:
        made.append(Counting(progress))
        return made[-1]

    return RetrieverAhead(build)


def wait_for(ahead: RetrieverAhead, groups: int) -> None:
    for _ in range(1000):
        if len(ahead._found) == groups:
            return
        threading.Event().wait(0.01)
    pytest.fail("nothing was found")


def test_what_was_found_is_not_looked_up_again() -> None:
    made: list[Counting] = []
    ahead = counting(made)
    with ahead.searching(GROUPS, 2) as begin:
        begin()
        begin()
        wait_for(ahead, len(GROUPS))
    assert [ahead.nearest(group, 2)[0][0, 0] for group in GROUPS] == [1, 2, 3]
    assert made[0].asked == GROUPS
    ahead.nearest(GROUPS[0], 2)  # it is kept for one question only
    assert made[0].asked == [*GROUPS, GROUPS[0]]


@pytest.mark.parametrize(("queries", "k"), [(GROUPS[0], 3), (GROUPS[0][:1], 2), ([*GROUPS[0], ""], 2)])
def test_another_question_has_its_own_answer(queries: list[str], k: int) -> None:
    made: list[Counting] = []
    ahead = counting(made)
    with ahead.searching(GROUPS[:1], 2) as begin:
        begin()
        wait_for(ahead, 1)
    assert ahead.nearest(queries, k)[0].shape == (len(queries), k)
    assert made[0].asked == [GROUPS[0], queries]


def test_the_end_of_the_training_stops_the_search() -> None:
    made: list[Counting] = []
    ahead = counting(made)
    made[0].go_on.clear()
    with ahead.searching(GROUPS, 2) as begin:
        begin()
        assert made[0].reached.wait(10)
        threading.Timer(0.2, made[0].go_on.set).start()  # amid the first group, after `searching` asked to stop
    assert made[0].asked == GROUPS[:1]
    assert not [thread for thread in threading.enumerate() if thread.name == "retrieval-ahead"]
    assert ahead.nearest(GROUPS[0], 2)[0][0, 0] == 2


def test_nothing_is_looked_up_before_the_training_begins() -> None:
    made: list[Counting] = []
    with counting(made).searching(GROUPS, 2):
        pass
    assert not made[0].asked


def test_a_failed_training_stops_the_search_and_stays_the_error() -> None:
    def stopped_training() -> None:
        with counting([]).searching(GROUPS, 2) as begin:
            begin()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped_training()
    assert not [thread for thread in threading.enumerate() if thread.name == "retrieval-ahead"]


def test_what_cannot_be_read_ahead_is_told_when_it_is_asked_for() -> None:
    def groups() -> Iterator[list[str]]:
        yield GROUPS[0]
        raise OSError("the disk is gone")

    ahead = counting([])
    with ahead.searching(groups(), 2) as begin:
        begin()
        wait_for(ahead, 1)
    assert ahead.nearest(GROUPS[1], 2)[0][0, 0] == 2


@pytest.mark.parametrize(("cores", "is_ahead"), [(2, True), (1, False)])
def test_idle_cores_change_no_byte(monkeypatch: pytest.MonkeyPatch, cores: int, is_ahead: bool) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    backend = LocalBackend(BASE, Recipe.resolve({"model": {"device": "cpu"}}))
    plain = backend.retriever(DOCUMENTS, 4)
    with backend.looking_ahead(DOCUMENTS, 4, GROUPS, 2) as begin:
        begin()
        for ahead in backend._ahead.values():
            assert isinstance(ahead, RetrieverAhead)
            wait_for(ahead, len(GROUPS))
    retriever = backend.retriever(DOCUMENTS, 4)
    assert isinstance(retriever, RetrieverAhead) is is_ahead
    for group in GROUPS:
        found, expected = retriever.nearest(group, 2), plain.nearest(group, 2)
        assert found[0].tobytes() == expected[0].tobytes()
        assert found[1].tobytes() == expected[1].tobytes()
    assert not isinstance(backend.retriever(DOCUMENTS, 4), RetrieverAhead)  # its memory is given back


def test_another_set_of_documents_is_searched_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    backend = LocalBackend(BASE, Recipe.resolve({"model": {"device": "cpu"}}))
    with backend.looking_ahead(DOCUMENTS, 4, GROUPS, 2):
        pass
    assert not isinstance(backend.retriever(DOCUMENTS[:2], 4), RetrieverAhead)


def test_few_queries_are_embedded_on_the_cpu() -> None:
    gpu = ModelSettings(device="cuda")
    assert retrieval_device(gpu, FEW_QUERIES) == torch.device("cpu")
    assert retrieval_device(gpu, FEW_QUERIES + 1) == torch.device("cuda")
    assert retrieval_device(ModelSettings(device="cpu"), FEW_QUERIES + 1) == torch.device("cpu")
