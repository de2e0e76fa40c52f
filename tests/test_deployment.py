"""Dockerfile, docker-compose.yml and what docs/operating.md says of settings. No container is run here."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic_core import PydanticUndefined

from store.database import Database
from store.settings import Settings
from worker import registry

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TARGETS = ("api", "worker-cpu", "worker-gpu")
ONE_SHOT = {"migrate", "bucket", "fetch"}
COMPILERS = re.compile(r"\b(build-essential|gcc|g\+\+|clang|make|apt-get|apk)\b")
VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(:?[-?])?([^}]*)\}")


# --- Dockerfile -------------------------------------------------------------------------------------------------------


@dataclass
class Stage:
    """One FROM with its instructions."""

    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)
    heredocs: dict[str, str] = field(default_factory=dict)

    def values(self, instruction: str) -> list[str]:
        return [value for word, value in self.steps if word == instruction]


def read_stages() -> dict[str, Stage]:
    stages: dict[str, Stage] = {}
    lines = iter((ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines())
    current = Stage("", "")
    for line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        whole = line
        while whole.endswith("\\"):
            whole = f"{whole[:-1]} {next(lines).strip()}"
        word, _, value = whole.partition(" ")
        value = value.strip()
        if word == "FROM":
            base, _, name = value.partition(" AS ")
            current = stages.setdefault(name, Stage(name, base))
            continue
        current.steps.append((word, value))
        if found := re.search(r"<<-?'?(\w+)'?\s+(\S+)", value):
            text: list[str] = []
            while (inner := next(lines)) != found[1]:
                text.append(inner)
            current.heredocs[found[2]] = "\n".join(text) + "\n"
    return stages


STAGES = read_stages()


def chain(target: str) -> list[Stage]:
    """The stage and those it builds on, outermost last."""
    found = []
    name = target
    while name in STAGES:
        found.append(STAGES[name])
        name = STAGES[name].base
    return found[::-1]


def last(target: str, instruction: str) -> str:
    return [value for stage in chain(target) for value in stage.values(instruction)][-1]


@pytest.mark.parametrize("target", TARGETS)
class TestImages:
    def test_it_is_a_slim_python_with_nothing_but_the_environment(self, target: str) -> None:
        assert chain(target)[0].base == "python:${PYTHON_VERSION}-slim"
        runs = [value for stage in chain(target) for value in stage.values("RUN")]
        assert not [run for run in runs if COMPILERS.search(run) or "pip" in run]
        copied = [value for stage in chain(target) for value in stage.values("COPY") if "<<" not in value]
        assert copied == [f"--from=build-{target} /opt/venv /opt/venv"]

    def test_it_runs_as_a_fixed_user_who_is_not_root(self, target: str) -> None:
        user = last(target, "USER")
        assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user)
        assert f"--uid {user.partition(':')[0]}" in STAGES["runtime"].values("RUN")[0]

    def test_its_commands_are_lists_and_it_ends_on_sigterm(self, target: str) -> None:
        assert json.loads(last(target, "ENTRYPOINT")) == ["semievol"]
        assert json.loads(last(target, "CMD"))[0] in {"serve", "worker"}
        assert last(target, "STOPSIGNAL") == "SIGTERM"
        assert json.loads(last(target, "HEALTHCHECK").partition("CMD ")[2])[0] == "python"

    def test_its_environment_is_installed_under_the_constraints_without_a_cache(self, target: str) -> None:
        stages = chain(f"build-{target}")
        assert any("PIP_NO_CACHE_DIR=1" in value for stage in stages for value in stage.values("ENV"))
        for run in (value for stage in stages for value in stage.values("RUN") if "pip install" in value):
            assert "--constraint constraints.txt" in run or run == "pip install --no-deps /wheel/*.whl"


def test_every_copied_source_is_there_and_reaches_the_builder() -> None:
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sources = [
        source
        for stage in STAGES.values()
        for value in stage.values("COPY")
        if not value.startswith(("--from=", "<<"))
        for source in shlex.split(value)[:-1]
    ]
    assert len(sources) > 8
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert "*" in ignore
    assert sorted(sources) == sorted(line[1:] for line in ignore if line.startswith("!"))


def test_the_packages_of_the_wheel_are_copied() -> None:
    copied = {value.split()[0] for value in STAGES["wheel"].values("COPY")}
    assert set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) <= copied


def api_packages() -> list[str]:
    """What the API's image installs by name."""
    run = STAGES["build-api"].values("RUN")[0]
    return shlex.split(run.partition("constraints.txt")[2])


def closure(names: list[str]) -> set[str]:
    """The distributions that installing these brings."""
    found: set[str] = set()
    waiting = [Requirement(name) for name in names]
    done = set()
    while waiting:
        wanted = waiting.pop()
        extras = wanted.extras or {""}
        key = (canonicalize_name(wanted.name), tuple(sorted(extras)))
        if key in done:
            continue
        done.add(key)
        try:
            requires = distribution(wanted.name).requires or []
        except PackageNotFoundError:  # for another platform, or an extra that this environment has not
            continue
        found.add(canonicalize_name(wanted.name))
        for line in requires:
            inner = Requirement(line)
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(inner)
    return found


IMPORTS = """
import sys
absent = set(sys.argv[1].split(","))

class Guard:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"{name} is not in the image", name=name)

sys.meta_path.insert(0, Guard)
import alembic.command, boto3, psycopg, tokenizers, uvicorn
import api.main, semievol.cli, semievol.jobs.show, semievol.jobs.submission, worker.serve
from api.doorbell import build_bell
from store.database import Database
from store.settings import Settings
settings = Settings(database_url=f"sqlite:///{sys.argv[2]}/test.db", broker_url="redis://127.0.0.1:1/0")
Database(settings.database_url).migrate()
api.main.create_app(settings, bell=build_bell(settings))
print(*{name.partition(".")[0] for name in sys.modules})
"""


def test_the_list_of_the_api_image_is_enough_and_holds_no_engine(tmp_path: Path) -> None:
    brought = closure(api_packages())
    assert not brought & {"torch", "transformers", "peft", "pyarrow", "scipy", "vllm", "sentence-transformers"}
    absent = {
        top
        for top, names in packages_distributions().items()
        if not any(canonicalize_name(name) in brought | {"semievol", "setuptools"} for name in names)
    }
    assert {"torch", "numpy", "pytest"} <= absent
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, ",".join(sorted(absent)), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("SEMIEVOL_")}
        | {"SEMIEVOL_DATA": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "fastapi" in done.stdout.split()


def test_every_package_named_for_the_api_is_one_of_the_project() -> None:
    project = {canonicalize_name(Requirement(line).name) for line in PROJECT["project"]["dependencies"]}
    assert {canonicalize_name(Requirement(name).name) for name in api_packages()} <= project


@pytest.mark.parametrize(("seconds_ago", "status"), [(0, 0), (1000, 1), (None, 1)])
def test_a_workers_health_is_its_last_sign_in_the_database(
    tmp_path: Path, seconds_ago: int | None, status: int
) -> None:
    url = f"sqlite:///{tmp_path / 'test.db'}"
    database = Database(url)
    database.migrate()
    if seconds_ago is not None:
        with database.write() as session:
            registry.register(session, registry.worker_id(), ["cpu"])
            session.connection().exec_driver_sql(f"UPDATE workers SET seen_at = seen_at - {seconds_ago}")
    database.close()
    script = STAGES["worker"].heredocs["/opt/worker_seen.py"]
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"SEMIEVOL_DATABASE_URL": url, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr


# --- docker-compose.yml -----------------------------------------------------------------------------------------------

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def environment(service: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = service.get("environment", {})
    return found


def seconds(duration: str) -> int:
    return int(duration.removesuffix("s"))


@pytest.mark.parametrize("name", SERVICES)
class TestServices:
    def test_it_starts_again_and_is_watched_or_runs_once(self, name: str) -> None:
        service = SERVICES[name]
        if name in ONE_SHOT:
            assert service["restart"] == "no"
            assert service["healthcheck"] == {"disable": True}
        else:
            assert service["restart"] == "unless-stopped"
            assert service["healthcheck"]["test"]

    def test_it_may_do_little(self, name: str) -> None:
        service = SERVICES[name]
        assert service["cap_drop"] == ["ALL"]
        assert "cap_add" not in service
        assert "privileged" not in service
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["read_only"] is True
        assert service["logging"]["options"]["max-size"]

    def test_it_names_an_image_with_a_tag_or_a_target_that_there_is(self, name: str) -> None:
        service = SERVICES[name]
        if "build" in service:
            assert service["build"]["target"] in TARGETS
        else:
            assert re.fullmatch(r"[a-z/]+:[\w.-]+", service["image"])
            assert not service["image"].endswith(":latest")

    def test_its_limits_keep_it_from_taking_the_whole_machine(self, name: str) -> None:
        if name != "fetch":
            assert SERVICES[name]["deploy"]["resources"]["limits"]["memory"]

    def test_its_settings_are_settings(self, name: str) -> None:
        known = {f"SEMIEVOL_{field_name.upper()}" for field_name in Settings.model_fields}
        ours = {key for key in environment(SERVICES[name]) if key.startswith("SEMIEVOL_")}
        assert ours <= known

    def test_its_volumes_and_networks_are_declared(self, name: str) -> None:
        service = SERVICES[name]
        named = {volume.partition(":")[0] for volume in service.get("volumes", []) if not volume.startswith("/")}
        assert named <= set(COMPOSE["volumes"])
        assert set(service["networks"]) <= set(COMPOSE["networks"])


def test_no_secret_has_a_default() -> None:
    for service in SERVICES.values():
        for key, value in environment(service).items():
            if not re.search(r"PASSWORD|SECRET|TOKEN|KEY|AUTH|_URL|ROOT_USER", key):
                continue
            for _, kind, default in VARIABLE.findall(value or ""):
                assert kind == ":?" or not default, key
            assert value is None or VARIABLE.search(value), f"{key} is written out"


def test_the_s3_server_does_not_start_without_secrets() -> None:
    script = SERVICES["s3"]["command"][0].replace("$$", "$").replace("exec minio", "echo minio")
    for given in ({}, {"MINIO_ROOT_USER": "x", "MINIO_ROOT_PASSWORD": ""}):
        done = subprocess.run(["sh", "-c", script], env=given, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert "minio" not in done.stdout
        assert "in .env" in done.stderr


def test_what_must_be_set_says_how_and_is_in_the_example() -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    needed = [(name, hint) for name, kind, hint in VARIABLE.findall(text) if kind == ":?"]
    assert {name for name, _ in needed} == {"POSTGRES_PASSWORD", "REDIS_PASSWORD", "SEMIEVOL_MODELS"}
    assert all(".env" in hint for _, hint in needed)
    for name, value in re.findall(r"^#?([A-Z_0-9]+)=(.*)$", example, re.MULTILINE):
        assert name in text, f"{name} is in .env.example and nowhere in docker-compose.yml"
        if re.search(r"PASSWORD|SECRET|TOKEN|KEY", name):
            assert not value
    for name, _ in needed:
        assert f"\n{name}=\n" in example


def test_redis_never_evicts_and_keeps_the_queue_on_disk() -> None:
    command = " ".join(SERVICES["redis"]["command"])
    assert "--maxmemory-policy noeviction" in command
    assert "--appendonly yes" in command
    assert "--requirepass ${REDIS_PASSWORD:?" in command


def test_nothing_but_the_api_can_be_reached_from_outside() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["api"]
    assert COMPOSE["networks"]["inside"]["internal"] is True
    for name in ("postgres", "redis", "s3"):
        assert SERVICES[name]["networks"] == ["inside"]


def test_things_start_in_order() -> None:
    assert SERVICES["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    for name in ("api", "worker", "worker-cpu"):
        assert SERVICES[name]["depends_on"] == {
            "migrate": {"condition": "service_completed_successfully"},
            "redis": {"condition": "service_healthy"},
        }


def test_workers_have_time_to_stop() -> None:
    for name in ("worker", "worker-cpu"):
        grace = float(environment(SERVICES[name])["SEMIEVOL_GRACE_SECONDS"])
        assert seconds(SERVICES[name]["stop_grace_period"]) >= grace + 15


def test_the_gpu_worker_gets_a_gpu_and_only_it() -> None:
    for name, service in SERVICES.items():
        devices = service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
        assert bool(devices) == (name == "worker")
    assert SERVICES["worker"]["profiles"] == ["gpu"]


# --- docs -------------------------------------------------------------------------------------------------------------


def setting_row(name: str) -> str:
    """The setting's row in docs/operating.md, up to its description if the class has none."""
    declared = Settings.model_fields[name]
    default = declared.get_default(call_default_factory=True)
    if default is PydanticUndefined or default in (None, "", {}, []):
        shown = ""
    else:
        shown = f"`{json.dumps(default) if isinstance(default, bool) else default}`"
    description = (declared.description or "").replace("|", "\\|")
    return f"| `SEMIEVOL_{name.upper()}` | {shown} | {description}"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_in_the_guide(name: str) -> None:
    assert setting_row(name) in (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["operating.md", "http.md", "leaving-hosted-fine-tuning.md"])
def test_links_between_pages_lead_somewhere(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (ROOT / "docs" / target).exists(), target


def test_every_route_is_in_the_walk_through_or_the_table_of_calls(tmp_path: Path) -> None:
    """The guides name the paths that the service has, and no others."""
    from api.main import create_app

    text = "".join(
        (ROOT / "docs" / page).read_text(encoding="utf-8") for page in ("http.md", "leaving-hosted-fine-tuning.md")
    )
    app = create_app(Settings(database_url="sqlite://", data=tmp_path))
    paths = {re.sub(r"\{[^}]*\}", "{}", path) for path in app.openapi()["paths"] if path.startswith("/v1")}
    told = {re.sub(r"\{[^}]*\}", "{}", path) for path in re.findall(r"`[A-Z/]+ (/v1/[^`\s?]*)`", text)}
    assert told == paths
