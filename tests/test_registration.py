"""The stack of a cluster at a ZenML server: here a server's database on this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from medflow.config.sections.stack import StackConfig
from medflow.platform import stack as stacks
from medflow.platform.kubernetes import registration

NAME = "registered"
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret"}


def config(uri: str = "s3://bucket/one") -> StackConfig:
    return StackConfig.model_validate(
        {
            "server": "http://zenml.example",
            "cluster": {"context": "there"},
            "image": "registry.example/medflow-step:1",
            "registry": "registry.example",
            "store": {"uri": uri, "endpoint": "http://s3.example"},
            "mlflow": {"uri": "http://mlflow.example"},
        }
    )


@pytest.fixture
def client() -> Iterator[object]:
    found = stacks.client()
    yield found
    registration.delete(found, NAME)


def outcomes(client, stack: StackConfig) -> dict[str, str]:
    return {item.part: item.outcome for item in registration.apply(client, NAME, stack, ENVIRONMENT)}


def test_a_second_apply_changes_nothing(client) -> None:
    assert set(outcomes(client, config()).values()) == {"created"}
    assert registration.differing(client, NAME, config(), ENVIRONMENT) == []
    assert set(outcomes(client, config()).values()) == {"unchanged"}


def test_credentials_that_are_not_those_of_the_server_are_told(client) -> None:
    outcomes(client, config())
    stale = {**ENVIRONMENT, "AWS_SECRET_ACCESS_KEY": "renewed"}
    assert registration.differing(client, NAME, config(), stale) == ["secret"]
    assert registration.differing(client, NAME, config(), {}) == [], "a machine without any cannot tell"


def test_a_store_at_another_uri_is_another_component_and_the_former_stays(client) -> None:
    outcomes(client, config())
    before = client.get_stack(NAME).components["artifact_store"][0]
    assert registration.differing(client, NAME, config("s3://bucket/two"), ENVIRONMENT) == ["artifact_store", "stack"]
    again = outcomes(client, config("s3://bucket/two"))
    assert (again["artifact_store"], again["stack"], again["orchestrator"]) == ("created", "updated", "unchanged")
    after = client.get_stack(NAME).components["artifact_store"][0]
    assert (before.id, before.configuration["path"]) != (after.id, after.configuration["path"])
    assert client.get_stack_component("artifact_store", before.id).configuration["path"] == "s3://bucket/one"


def test_a_stack_with_another_store_than_the_yaml_says_is_told_though_that_store_is_there(client) -> None:
    outcomes(client, config())
    outcomes(client, config("s3://bucket/two"))
    assert registration.differing(client, NAME, config("s3://bucket/two"), ENVIRONMENT) == []
    assert registration.differing(client, NAME, config(), ENVIRONMENT) == ["stack"]
    assert outcomes(client, config())["stack"] == "updated"
    assert registration.differing(client, NAME, config(), ENVIRONMENT) == []


def test_delete_removes_every_store_that_the_stack_had(client) -> None:
    outcomes(client, config())
    outcomes(client, config("s3://bucket/two"))
    gone = registration.delete(client, NAME)
    assert len([item for item in gone if item.part == "artifact_store"]) == 2
    assert registration.delete(client, NAME) == []
