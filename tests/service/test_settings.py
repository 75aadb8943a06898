from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.settings import InvalidSettings, read_settings

KEY = "k" * 32


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("STILLHOUSE_"):
            monkeypatch.delenv(name)


def test_everything_lies_in_the_home_unless_it_is_said_to_lie_elsewhere(tmp_path: Path) -> None:
    settings = read_settings(home=tmp_path)
    assert settings.database_url == f"sqlite:///{tmp_path}/stillhouse.db"
    assert settings.artifacts == f"{tmp_path}/artifacts"
    assert settings.embedded
    assert (settings.host, settings.port) == ("127.0.0.1", 8431)
    assert read_settings().home == Path.home() / ".stillhouse"


def test_variables_are_read_and_given_values_go_before_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STILLHOUSE_PORT", "9000")
    monkeypatch.setenv("STILLHOUSE_DATA_ROOTS", f"/data{os.pathsep}{tmp_path}")
    monkeypatch.setenv("STILLHOUSE_ALLOWED_HOSTS", "one.example, two.example")
    monkeypatch.setenv("STILLHOUSE_RAY_ADDRESS", "")
    settings = read_settings(backend="inline", host=None)
    assert settings.port == 9000
    assert settings.data_roots == (Path("/data"), tmp_path)
    assert settings.allowed_hosts == ("one.example", "two.example")
    assert (settings.backend, settings.ray_address, settings.host) == ("inline", "local", "127.0.0.1")
    assert read_settings(port=1).port == 1


@pytest.mark.parametrize(
    ("given", "variable"),
    [
        ({"port": 99999}, "STILLHOUSE_PORT"),
        ({"backend": "slurm"}, "STILLHOUSE_BACKEND"),
        ({"lease_seconds": 0}, "STILLHOUSE_LEASE_SECONDS"),
        ({"api_key_file": "/nowhere/key"}, "STILLHOUSE_API_KEY_FILE"),
        ({"concurrent_jobs": "many"}, "STILLHOUSE_CONCURRENT_JOBS"),
    ],
)
def test_a_wrong_value_is_told_by_the_name_of_its_variable(given: dict[str, object], variable: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        read_settings(**given)
    assert [error.pointer for error in caught.value.errors] == [f"/{next(iter(given))}"]
    assert variable in caught.value.message


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.10", "stillhouse.example"])  # noqa: S104 - refused
def test_no_address_that_others_reach_without_a_key(host: str) -> None:
    with pytest.raises(InvalidSettings, match="STILLHOUSE_API_KEY"):
        read_settings(host=host).check_binding()
    read_settings(host=host, api_key=KEY).check_binding()
    read_settings(host=host).check_binding(keys=True)
    with pytest.raises(InvalidSettings, match="STILLHOUSE_AUTH"):
        read_settings(host=host, api_key=KEY, auth="off").check_binding(keys=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    read_settings(host=host).check_binding()
    read_settings(host=host, auth="off").check_binding()


def test_a_key_that_can_be_guessed_is_refused() -> None:
    with pytest.raises(InvalidSettings, match="fewer than 16 characters"):
        read_settings(api_key="admin").check_binding()


def test_a_key_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    found = read_settings(api_key_file=tmp_path / "key").api_key
    assert found is not None
    assert found.get_secret_value() == KEY


def test_secrets_are_never_in_its_text() -> None:
    settings = read_settings(
        api_key=KEY, database_url="postgresql://sam:canary@db/house", artifacts="s3://id:canary@bucket/x"
    )
    for text in (repr(settings), str(settings), settings.database):
        assert "canary" not in text
        assert KEY not in text
    assert settings.database == "postgresql://sam:***@db/house"
    with pytest.raises(InvalidSettings) as caught:
        read_settings(api_key=KEY, port="canary")
    assert "canary" not in str(caught.value)


def test_a_driver_gets_equal_settings_but_not_the_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ours = read_settings(
        home=tmp_path,
        api_key=KEY,
        data_roots=(tmp_path, Path("/data")),
        lease_seconds=5,
        backend="inline",
        ray_token_file=tmp_path / "ray",
    )
    monkeypatch.setenv("STILLHOUSE_API_KEY", KEY)
    for name, value in ours.environment().items():
        monkeypatch.setenv(name, value)
    theirs = read_settings()
    assert theirs.api_key is None
    same = ("home", "database_url", "artifacts", "data_roots", "backend", "ray_address", "ray_token_file")
    for name in (*same, "lease_seconds"):
        assert getattr(theirs, name) == getattr(ours, name), name


def test_no_cluster_is_worked_on_that_asks_nobody_for_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_settings(ray_address="local").check_cluster()
    read_settings(ray_address="ray:6379", backend="inline").check_cluster()
    with pytest.raises(InvalidSettings, match=r"STILLHOUSE_RAY_TOKEN_FILE: name the file .* RAY_AUTH_MODE=disabled"):
        read_settings(ray_address="ray:6379").check_cluster()
    token = tmp_path / "token"
    for spoil in (lambda: None, token.touch):
        spoil()
        with pytest.raises(InvalidSettings, match=r"RAY_TOKEN_FILE: the file .* (cannot be read|is empty)"):
            read_settings(ray_address="ray:6379", ray_token_file=token).check_cluster()
    token.write_text("5ecre7")
    read_settings(ray_address="ray:6379", ray_token_file=token).check_cluster()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    read_settings(ray_address="ray:6379").check_cluster()
