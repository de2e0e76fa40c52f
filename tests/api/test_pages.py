"""The dashboard's document and assets: served whole, with headers that keep others out, and from one folder only."""

import gzip
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from api.web import pages
from tests.api.service import Service
from tests.api.test_files import error_of

SCRIPT = "/assets/app.js"
ADDRESSES = [path.replace("{job_id}", "ftjob-0123456789abcdef01234567") for path in pages.PAGES]
GZIP = {"Accept-Encoding": "gzip"}
PLAIN = {"Accept-Encoding": "identity"}


@pytest.mark.parametrize("path", ADDRESSES)
def test_every_page_is_the_one_document(service: Service, path: str) -> None:
    answer = service.anonymous.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert b'<div id="app"></div>' in answer.content
    head = service.anonymous.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["etag"] == answer.headers["etag"]


def test_the_document_holds_no_scripts_of_its_own() -> None:
    text = (pages.STATIC / pages.DOCUMENT).read_text(encoding="utf-8")
    assert 'src="/assets/app.js"' in text
    assert text.count("<script") == text.count('<script type="module" src="/assets/')
    assert "<style" not in text
    assert " style=" not in text
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", text)


def test_parts_are_asked_for_by_a_name_that_changes_with_them(service: Service, tmp_path: Path) -> None:
    """So that a browser may keep them for good, and a new version of the service is seen at once."""
    [script] = re.findall(r'<script type="module" src="([^"]+)"', service.anonymous.get("/").text)
    answer = service.anonymous.get(script)
    assert answer.content == (pages.STATIC / SCRIPT.removeprefix("/")).read_bytes()
    assert "immutable" in answer.headers["cache-control"]
    assert service.anonymous.get("/").headers["cache-control"] == "no-cache"
    assert service.anonymous.get(SCRIPT).headers["cache-control"] == "no-cache"
    shutil.copytree(pages.STATIC, tmp_path / "static")
    with (tmp_path / "static" / "assets" / "app.css").open("a") as file:
        file.write("\n")
    assert script.removeprefix("/") not in pages.load_site(tmp_path / "static")


@pytest.mark.parametrize("path", ["/", SCRIPT])
def test_browsers_are_told_to_be_strict(service: Service, path: str) -> None:
    headers = service.anonymous.get(path).headers
    policy = {part.split()[0]: part.split()[1:] for part in headers["content-security-policy"].split(";")}
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == ["'none'"]
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == ["'self'"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert "camera=()" in headers["permissions-policy"]


def test_every_asset_is_served_with_its_type(service: Service) -> None:
    types = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".woff2": "font/woff2"}
    found = [path for path in (pages.STATIC / "assets").rglob("*") if path.is_file()]
    assert {path.suffix for path in found} >= {".js", ".css"}
    for path in found:
        answer = service.anonymous.get(f"/{path.relative_to(pages.STATIC).as_posix()}")
        assert answer.content == path.read_bytes()
        assert answer.headers["content-type"].partition(";")[0] == types.get(
            path.suffix, answer.headers["content-type"].partition(";")[0]
        )
        assert answer.headers["content-type"] != "application/octet-stream", path


@pytest.mark.parametrize(
    "path",
    [
        "/assets/none.js",
        "/assets/",
        "/assets/../index.html",
        "/assets/%2e%2e/index.html",
        "/assets/..%2findex.html",
        "/assets/%2e%2e/%2e%2e/pages.py",
        "/assets//etc/passwd",
        "/assets/assets/app.js",
        "/assets/app.js/",
        "/index.html",
        "/jobs",
        "/jobs/a/b",
    ],
)
def test_nothing_else_is_served(service: Service, path: str) -> None:
    # As raw bytes, because clients tidy dots away.
    answer = service.anonymous.request("GET", service.anonymous.base_url.copy_with(raw_path=path.encode()))
    assert error_of(answer, 404)["code"] == "unknown_url"


# --- caches and packing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", [GZIP, PLAIN])
@pytest.mark.parametrize("path", ["/", SCRIPT])
def test_what_the_browser_has_is_not_sent_again(service: Service, path: str, encoding: dict[str, str]) -> None:
    first = service.anonymous.get(path, headers=encoding)
    assert first.headers["cache-control"] == "no-cache"
    etag = first.headers["etag"]
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = service.anonymous.get(path, headers=encoding | {"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == etag
        assert "content-security-policy" in again.headers
    assert service.anonymous.get(path, headers=encoding | {"If-None-Match": '"other"'}).status_code == 200


def test_packed_and_plain_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "long.js").write_text("let a = 1;\n" * 1000)
    (tmp_path / "short.js").write_text("a")
    (tmp_path / "picture.png").write_bytes(bytes(1000))
    site = pages.load_site(tmp_path)
    packed = site["long.js"].packed
    assert packed is not None
    assert gzip.decompress(packed) == site["long.js"].body
    assert len(packed) < 200
    assert site["short.js"].packed is None
    assert site["picture.png"].packed is None
    assert pages.load_site(tmp_path) == site


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [
        ("gzip", True),
        ("gzip, deflate, br, zstd", True),
        ("br;q=1.0, GZIP;q=0.5", True),
        ("*", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000, br", False),
        ("br", False),
        ("identity", False),
        ("", False),
    ],
)
def test_packing_is_for_those_who_take_it(service: Service, accepted: str, packed: bool) -> None:
    answer = service.anonymous.get("/", headers={"Accept-Encoding": accepted})
    assert answer.headers["vary"] == "Accept-Encoding"
    assert ("content-encoding" in answer.headers) == packed
    plain = service.anonymous.get("/", headers=PLAIN)
    assert answer.content == plain.content
    assert (answer.headers["etag"] != plain.headers["etag"]) == packed


def test_no_rule_keeps_the_pages_out_of_the_wheel() -> None:
    """Hatch takes every file of the packages that .gitignore does not name."""
    root = Path(__file__).resolve().parents[2]
    files = [str(path.relative_to(root)) for path in pages.STATIC.rglob("*") if path.is_file()]
    assert len(files) >= 3
    if shutil.which("git") is None or not (root / ".git").exists():
        pytest.skip("not a checkout")
    command = ["git", "check-ignore", "--no-index", *files]
    assert subprocess.run(command, capture_output=True, text=True, check=False, cwd=root).stdout == ""
