"""Models: bases of the allow-list and adapters of the project."""

from urllib.parse import quote

import pytest

from store.models import FineTunedModel, Job
from tests.api.service import Server, Service
from tests.api.test_files import error_of

ADAPTER = "ft:tiny:support:0123456789ab"


@pytest.fixture
def adapter(service: Service) -> str:
    with service.database.write() as session:
        session.add(
            Job(
                id="ftjob-1",
                project_id="default",
                created_by="k",
                method="supervised",
                model="tiny",
                model_source={},
                recipe={},
                seed=0,
                inputs={},
                asked={},
            )
        )
        session.flush()
        session.add(FineTunedModel(id=ADAPTER, project_id="default", job_id="ftjob-1", base="tiny"))
    return ADAPTER


def test_bases_and_own_adapters_are_listed(service: Service, adapter: str) -> None:
    body = service.client.get("/v1/models").json()
    assert body["object"] == "list"
    assert [(model["id"], model["object"], model["owned_by"]) for model in body["data"]] == [
        ("tiny", "model", "semievol"),
        (adapter, "model", "semievol"),
    ]
    assert [model["id"] for model in service.other.get("/v1/models").json()["data"]] == ["tiny"]


@pytest.mark.parametrize("encoded", [ADAPTER, quote(ADAPTER, safe="")])
def test_ids_come_plain_and_encoded(service: Service, adapter: str, encoded: str) -> None:
    assert service.client.get(f"/v1/models/{encoded}").json()["id"] == adapter
    assert error_of(service.other.get(f"/v1/models/{encoded}"), 404)["code"] == "model_not_found"
    assert error_of(service.other.delete(f"/v1/models/{encoded}"), 404)["code"] == "model_not_found"
    deleted = service.client.delete(f"/v1/models/{encoded}").json()
    assert deleted == {"id": adapter, "object": "model", "deleted": True}
    assert error_of(service.client.get(f"/v1/models/{encoded}"), 404)["code"] == "model_not_found"


def test_a_base_cannot_be_deleted(service: Service) -> None:
    assert error_of(service.client.delete("/v1/models/tiny"), 403)["code"] == "cannot_delete_base_model"


def test_a_strange_id_is_not_found(service: Service) -> None:
    for path in ("nobody/knows", "nobody%2Fknows", "x" * 200):
        assert error_of(service.client.get(f"/v1/models/{path}"), 404)["code"] == "model_not_found"


def test_the_openai_client_knows_the_models(server: Server) -> None:
    with server.openai() as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
        assert client.models.retrieve("tiny").owned_by == "semievol"
