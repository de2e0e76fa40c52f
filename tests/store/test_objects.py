"""The object store: a folder, and a bucket of a real S3 server."""

import hashlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from store.objects import LocalObjects, ObjectMissing, ObjectStore, S3Objects, open_object, open_objects
from store.settings import Settings
from tests.servers import free_port

CONTENT = bytes(range(256)) * 5000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(params=["folder", "bucket"])
def objects(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    if request.param == "folder":
        store = open_objects(Settings(data=tmp_path))
        assert isinstance(store, LocalObjects)
        store.check()
        yield store
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import boto3
        from moto.server import ThreadedMotoServer

        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        port = free_port()
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        server.start()
        address = f"http://127.0.0.1:{port}"
        boto3.client("s3", endpoint_url=address).create_bucket(Bucket="bulk")
        bucket = open_objects(Settings(data=tmp_path, objects="s3://bulk/some/prefix", s3_endpoint=address))
        assert isinstance(bucket, S3Objects)
        yield bucket
        bucket.client.close()
        server.stop()


def put(objects: ObjectStore, folder: Path) -> None:
    path = folder / "upload"
    path.write_bytes(CONTENT)
    objects.put(path, DIGEST)


def test_what_was_put_is_read_whole_and_in_parts(objects: ObjectStore, tmp_path: Path) -> None:
    objects.check()
    put(objects, tmp_path)
    assert objects.exists(DIGEST)
    assert b"".join(objects.read(DIGEST)) == CONTENT
    assert b"".join(objects.read(DIGEST, 1000)) == CONTENT[1000:]
    assert b"".join(objects.read(DIGEST, 1000, 77)) == CONTENT[1000:1077]
    assert b"".join(objects.read(DIGEST, 5, 0)) == b""
    objects.fetch(DIGEST, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == CONTENT


def test_an_object_is_a_file_that_is_read_anywhere(objects: ObjectStore, tmp_path: Path) -> None:
    put(objects, tmp_path)
    with open_object(objects, DIGEST, len(CONTENT)) as file:
        for place, length in ((1_200_000, 70_000), (0, 10), (4, 1_100_000), (len(CONTENT) - 3, 10)):
            assert file.seek(place) == place
            assert file.read(length) == CONTENT[place : place + length]
        assert file.seek(-8, os.SEEK_END) == len(CONTENT) - 8
        assert file.read() == CONTENT[-8:]
        assert file.read(1) == b""
    with open_object(objects, "0" * 64, 10) as file, pytest.raises(ObjectMissing):
        file.read()


def test_putting_again_changes_nothing(objects: ObjectStore, tmp_path: Path) -> None:
    put(objects, tmp_path)
    put(objects, tmp_path)
    assert [name for name, _ in objects.names()] == [DIGEST]


def test_a_missing_object_is_named_before_any_byte(objects: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(ObjectMissing):
        objects.read("0" * 64)
    with pytest.raises(ObjectMissing):
        objects.fetch("0" * 64, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    assert not objects.exists("0" * 64)


def test_a_deleted_object_is_gone(objects: ObjectStore, tmp_path: Path) -> None:
    put(objects, tmp_path)
    objects.delete(DIGEST)
    objects.delete(DIGEST)
    assert not objects.exists(DIGEST)
    assert list(objects.names()) == []


def test_only_a_bucket_has_addresses(objects: ObjectStore, tmp_path: Path) -> None:
    put(objects, tmp_path)
    address = objects.presigned(DIGEST, "adapter.zip")
    assert (address is None) == isinstance(objects, LocalObjects)
