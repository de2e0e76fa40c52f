"""The output folder: what is there is whole, what is done is not done again, and other runs stay apart."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from semievol.errors import WorkdirError
from semievol.fakes import FakeObserver
from semievol.ports import Progress
from semievol.workdir import MANIFEST, Stage, Workdir, sha256_of, write_whole

IDENTITY = {"model": "m", "seed": 0, "options": ["a", "b"], "rate": 1e-4, "steps": None}


class Boom(Exception):
    pass


def opened(root: Path, observer: FakeObserver | None = None, **identity: Any) -> Workdir:
    return Workdir(root, IDENTITY | identity, observer or FakeObserver())


def writing(content: str = "hello") -> Any:
    def work(folder: Path, progress: Progress) -> Mapping[str, Any]:
        (folder / "sub").mkdir()
        (folder / "sub" / "file.txt").write_text(content)
        progress(1, 1)
        return {"rows": 3, "name": "é"}

    return work


def never(folder: Path, progress: Progress) -> Mapping[str, Any]:
    raise AssertionError("a committed stage is not done again")


def test_a_stage_is_committed_with_sizes_and_digests(tmp_path: Path) -> None:
    stage = opened(tmp_path / "out").stage("round-1/select", writing())
    assert stage.folder == tmp_path / "out" / "stages" / "round-1" / "select"
    manifest = json.loads((stage.folder / MANIFEST).read_text())
    file = stage.folder / "sub" / "file.txt"
    assert manifest["files"] == {"sub/file.txt": {"bytes": 5, "sha256": sha256_of(file)}}
    assert (manifest["stage"], manifest["facts"]) == ("round-1/select", {"rows": 3, "name": "é"})


def test_a_committed_stage_is_not_done_again(tmp_path: Path) -> None:
    first = opened(tmp_path).stage("prepare", writing())
    observer = FakeObserver()
    again = opened(tmp_path, observer).stage("prepare", never)
    assert (again.facts, again.folder) == (first.facts, first.folder)
    assert (observer.started, observer.resumed, observer.finished) == (["prepare"], ["prepare"], [])


@pytest.mark.parametrize("facts", [{"list": (1, 2)}, {"nested": [(1, 0.5)]}, {"map": {"a": None}}])
def test_facts_are_the_same_when_made_and_when_read_again(tmp_path: Path, facts: dict[str, Any]) -> None:
    fresh = opened(tmp_path).stage("prepare", lambda folder, progress: facts)
    assert opened(tmp_path).stage("prepare", never).facts == fresh.facts


def test_an_interrupted_stage_leaves_nothing_that_counts_and_is_done_anew(tmp_path: Path) -> None:
    def interrupted(folder: Path, progress: Progress) -> Mapping[str, Any]:
        (folder / "half.txt").write_text("half")
        raise Boom

    with pytest.raises(Boom):
        opened(tmp_path).stage("prepare", interrupted)
    assert not (tmp_path / "stages" / "prepare").exists()
    stage = opened(tmp_path).stage("prepare", writing())
    assert sorted(path.name for path in stage.folder.iterdir()) == [MANIFEST, "sub"]


def test_a_stage_without_its_manifest_does_not_count(tmp_path: Path) -> None:
    stage = opened(tmp_path).stage("prepare", writing("old"))
    (stage.folder / MANIFEST).unlink()
    redone = opened(tmp_path).stage("prepare", writing("new"))
    assert (redone.folder / "sub" / "file.txt").read_text() == "new"


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_stage_is_refused_with_the_remedy(tmp_path: Path, damage: str) -> None:
    file = opened(tmp_path).stage("prepare", writing()).folder / "sub" / "file.txt"
    if damage == "missing":
        file.unlink()
    else:
        file.write_text("hell")
    with pytest.raises(WorkdirError, match="delete the folder"):
        opened(tmp_path).stage("prepare", never)


def test_nested_stages_do_not_disturb_each_other(tmp_path: Path) -> None:
    work = opened(tmp_path)
    stages = [work.stage(name, writing(name)) for name in ("round-1/generate-00000", "round-1/generate-00001", "base")]
    assert [(one.folder / "sub" / "file.txt").read_text() for one in stages] == list(work.stages)


@pytest.mark.parametrize("change", [{"seed": 1}, {"model": "other"}, {"options": ["a"]}, {"new": 1}])
def test_another_job_is_refused_and_told_what_differs(tmp_path: Path, change: dict[str, Any]) -> None:
    opened(tmp_path).stage("prepare", writing())
    with pytest.raises(WorkdirError) as caught:
        opened(tmp_path, **change)
    (name,) = change
    assert f"  {name}: " in str(caught.value)


def test_the_same_job_goes_on(tmp_path: Path) -> None:
    opened(tmp_path, options=("a", "b"))
    opened(tmp_path, options=("a", "b"))
    opened(tmp_path)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(WorkdirError, match="other files"):
        opened(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_a_file_as_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(WorkdirError, match="is a file"):
        opened(tmp_path / "out")


@pytest.mark.parametrize("left", [[], ["stages/"], ["stages/", "stages/job.json.partial"]])
def test_a_run_that_stopped_before_it_began_can_begin_again(tmp_path: Path, left: list[str]) -> None:
    for name in left:
        path = tmp_path / name
        path.mkdir() if name.endswith("/") else path.write_text("{")
    opened(tmp_path).stage("prepare", writing())


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", b"one")
    write_whole(tmp_path / "a", b"two")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"two"


def test_progress_reaches_the_observer_under_the_stage_s_name(tmp_path: Path) -> None:
    observer = FakeObserver()
    stage = opened(tmp_path, observer).stage("prepare", writing())
    assert isinstance(stage, Stage)
    assert (observer.progress, observer.finished) == ([("prepare", 1, 1)], ["prepare"])
