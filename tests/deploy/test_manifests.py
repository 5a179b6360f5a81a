"""The files of the deployment: valid, and about settings and commands that exist."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import compose
import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
COMPOSE = Path(next(iter(compose.__path__))) / "docker-compose"
PASSWORDS = {"POSTGRES_PASSWORD": "open", "ADMIN_PASSWORD": "sesame"}


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, env=environment)


def settings_of_example() -> set[str]:
    return set(re.findall(r"^([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))


def compose_config() -> dict[str, Any]:
    found = run(COMPOSE, "--file", DEPLOY / "compose.yaml", "--profile", "simulation", "config", **PASSWORDS)
    assert found.returncode == 0, found.stderr
    config: dict[str, Any] = yaml.safe_load(found.stdout)
    return config


def resources() -> list[dict[str, Any]]:
    names = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"]
    return [resource for name in names for resource in yaml.safe_load_all((KUBERNETES / name).read_text())]


def test_the_dockerfile_has_no_finding() -> None:
    found = run(Path(sys.executable).with_name("hadolint"), ROOT / "Dockerfile")
    assert (found.returncode, found.stdout) == (0, "")


def test_compose_accepts_its_file_and_needs_passwords() -> None:
    services = compose_config()["services"]
    assert {name: services[name]["deploy"]["replicas"] for name in ("serving", "recommender")} == {
        "serving": 2,
        "recommender": 2,
    }
    refused = run(COMPOSE, "--file", DEPLOY / "compose.yaml", "config", POSTGRES_PASSWORD="open")
    assert refused.returncode != 0
    assert "choose a password for the pages" in refused.stderr


def test_simulated_users_are_left_out_unless_asked_for() -> None:
    found = run(COMPOSE, "--file", DEPLOY / "compose.yaml", "config", "--services", **PASSWORDS)
    assert "nightly" in found.stdout.split()
    assert "simulated-users" not in found.stdout.split()


def test_only_the_proxy_can_be_reached_and_on_this_machine_alone() -> None:
    published = {name: service["ports"] for name, service in compose_config()["services"].items() if "ports" in service}
    assert {name: [port["host_ip"] for port in ports] for name, ports in published.items()} == {"proxy": ["127.0.0.1"]}


@pytest.mark.parametrize(
    "file", sorted(path.name for path in KUBERNETES.glob("*.yaml") if path.stem != "kustomization")
)
def test_kubernetes_accepts_each_manifest(file: str) -> None:
    checked = run(Path(sys.executable).with_name("kubernetes-validate"), "--strict", KUBERNETES / file)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_kustomization_has_all_manifests() -> None:
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    assert {*kustomization["resources"]} == {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml"}
    (generated,) = kustomization["configMapGenerator"]
    assert all((KUBERNETES / file).is_file() for file in generated["envs"])


def test_deployed_settings_exist() -> None:
    of_compose = {*compose_config()["services"]["serving"]["environment"]} - {"OPENAI_API_KEY"}
    of_kubernetes = {line.partition("=")[0] for line in (KUBERNETES / "settings.env").read_text().splitlines()}
    assert of_compose | of_kubernetes <= settings_of_example()


def test_each_workload_has_probes_limits_and_no_rights() -> None:
    workloads = {resource["metadata"]["name"]: resource for resource in resources() if "template" in resource["spec"]}
    assert {*workloads} == {"tips-serving", "tips-recommender", "tips-migrate"}
    templates = {name: each["spec"]["template"] for name, each in workloads.items()}
    (nightly,) = (each for each in resources() if each["kind"] == "CronJob")
    templates["tips-nightly"] = nightly["spec"]["jobTemplate"]["spec"]["template"]
    for name, template in templates.items():
        (container,) = template["spec"]["containers"]
        assert container["resources"]["limits"]["memory"], name
        assert template["spec"]["securityContext"]["runAsNonRoot"], name
        assert container["securityContext"]["readOnlyRootFilesystem"], name
        if "ports" in container:
            assert {"startupProbe", "livenessProbe", "readinessProbe"} <= {*container}, name


def test_each_service_scales_and_keeps_replicas_during_disruptions() -> None:
    kinds = {(resource["kind"], resource["metadata"]["name"]) for resource in resources()}
    for name in ("tips-serving", "tips-recommender"):
        assert {("HorizontalPodAutoscaler", name), ("PodDisruptionBudget", name), ("Service", name)} <= kinds
