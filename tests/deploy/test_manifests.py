"""What is given to clusters: valid by Kubernetes' own schemas, without rights, and in step with the command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main

from gr2.cli.app import app
from gr2.serving.config import ServeConfig

yaml = pytest.importorskip("yaml")

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES, KSERVE = DEPLOY / "kubernetes" / "gr2.yaml", DEPLOY / "kserve" / "inferenceservice.yaml"
SCHEMAS = "1.30"


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def by_kind(kind: str) -> dict[str, Any]:
    (found,) = (each for each in documents(KUBERNETES) if each["kind"] == kind)
    return found


def pods() -> dict[str, dict[str, Any]]:
    """The specification of the pods of each file."""
    deployment = by_kind("Deployment")["spec"]["template"]["spec"]
    return {"kubernetes": deployment, "kserve": documents(KSERVE)[0]["spec"]["predictor"]}


def options(arguments: list[str]) -> dict[str, Any]:
    """What `gr2 serve` makes of arguments. Raises click's error for one that it does not know."""
    command = typer.main.get_command(app).commands[arguments[0]]
    return command.make_context("serve", arguments[1:]).params


def containerfile() -> list[tuple[str, str]]:
    text = (DEPLOY / "container" / "Containerfile").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(" ", 1)) for line in lines]


def test_every_document_keeps_kubernetes_own_schema() -> None:
    validate = pytest.importorskip("kubernetes_validate")
    for document in documents(KUBERNETES):
        validate.validate(document, SCHEMAS, strict=True)
    # KServe's own schema is not at hand; its pods are Kubernetes' pods.
    predictor = pods()["kserve"]
    own = ("minReplicas", "maxReplicas", "scaleMetric", "scaleTarget")
    pod = {key: value for key, value in predictor.items() if key not in own}
    validate.validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod}, SCHEMAS, strict=True)


def test_the_schema_refuses_a_wrong_field() -> None:
    validate = pytest.importorskip("kubernetes_validate")
    service = by_kind("Service")
    service["spec"]["ports"][0]["prot"] = 1
    with pytest.raises(validate.ValidationError):
        validate.validate(service, SCHEMAS, strict=True)


@pytest.mark.parametrize("kind", ["kubernetes", "kserve"])
def test_the_servers_arguments_are_options_and_fit_the_pod(kind: str) -> None:
    pod = pods()[kind]
    (container,) = pod["containers"]
    found = options(container["args"])
    ServeConfig(**{name: found[name] for name in ("host", "port", "threads", "queue", "grace", "insecure")})
    ports = {port["containerPort"] for port in container["ports"]}
    assert found["port"] in ports
    sleep = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= sleep + found["grace"] + 5
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["grpc"]["port"] == found["port"]
    # An unready pod has left the list of endpoints before its server refuses.
    readiness = container["readinessProbe"]
    assert readiness["periodSeconds"] * readiness["failureThreshold"] < sleep


@pytest.mark.parametrize("kind", ["kubernetes", "kserve"])
def test_pods_have_no_rights_and_write_nowhere_but_to_scratch(kind: str) -> None:
    pod = pods()[kind]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] >= 10_000
    assert not pod["automountServiceAccountToken"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"cpu", "memory"} <= set(container["resources"]["requests"])
    assert "memory" in container["resources"]["limits"]
    writable = [mount for mount in container["volumeMounts"] if not mount.get("readOnly")]
    assert [mount["mountPath"] for mount in writable] == ["/tmp"]


def test_the_service_is_headless_and_finds_the_deployments_pods() -> None:
    service, deployment = by_kind("Service")["spec"], by_kind("Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert service["clusterIP"] == "None"
    budget, policy = by_kind("PodDisruptionBudget")["spec"], by_kind("NetworkPolicy")["spec"]
    for selector in (service["selector"], deployment["selector"]["matchLabels"], budget["selector"]["matchLabels"]):
        assert selector.items() <= labels.items()
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    named = {port["name"]: port["containerPort"] for port in pods()["kubernetes"]["containers"][0]["ports"]}
    assert {port["targetPort"]: port["port"] for port in service["ports"]} == named
    assert deployment["replicas"] > budget["maxUnavailable"]


def test_the_image_is_built_in_two_stages_and_runs_without_rights_or_torch() -> None:
    steps = containerfile()
    stages = [at for at, (word, _) in enumerate(steps) if word == "FROM"]
    assert len(stages) == 2
    last = steps[stages[1] :]
    user = next(rest for word, rest in last if word == "USER")
    assert re.fullmatch(r"\d{5,}:\d{5,}", user)
    assert int(user.split(":")[0]) == pods()["kubernetes"]["securityContext"]["runAsUser"]
    assert not any(word == "RUN" and "apt-get" in rest for word, rest in last)
    installed = next(rest for word, rest in steps if word == "RUN" and "pip install" in rest)
    assert installed.endswith("-c constraints.txt .")
    command = yaml.safe_load(next(rest for word, rest in last if word == "CMD"))
    found = options(command)
    exposed = {int(port) for word, rest in last if word == "EXPOSE" for port in rest.split()}
    assert {found["port"], found["metrics_port"]} == exposed


def test_what_the_image_copies_is_let_through() -> None:
    root = DEPLOY.parent
    allowed = {line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [rest.split()[:-1] for word, rest in containerfile() if word == "COPY" and not rest.startswith("--")]
    wanted = {name for names in copied for name in names}
    assert wanted == allowed
    assert all((root / name).exists() for name in wanted)
