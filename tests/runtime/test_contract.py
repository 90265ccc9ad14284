"""The contract: every rpc says who may call it, and the imports keep to their rooms."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from satchel.errors.v1 import errors_pb2
from satchel.options.v1 import options_pb2 as options

from deploy.parts import ROOT
from runtime import contract
from runtime.errors import Reason
from services.sessions.schema_files import DIRECTORY

ROOMS = ("app", "admin", "servicer", "convert", "domain", "store", "__main__", "__init__")
# What a room may import from its own service, by the walk of a request: servicer → convert → domain ← store.
ALLOWED = {
    "servicer": {"servicer", "convert", "domain", "part"},
    "convert": {"convert", "domain", "part"},
    "domain": {"domain", "part"},
    "store": {"domain", "store", "part"},
    "part": {"domain", "part"},
    "app": {"servicer", "convert", "domain", "store", "part"},
    "admin": {"app", "domain", "store", "part"},
    "__main__": {"app"},
    "__init__": set(),
}


def test_every_rpc_of_the_product_has_a_policy() -> None:
    policies = contract.policies()
    for service in contract.services():
        for method in service.methods:
            assert policies[f"/{service.full_name}/{method.name}"].access != options.ACCESS_UNSPECIFIED


def test_the_contract_knows_every_service_of_the_protos() -> None:
    named = {service.full_name for service in contract.services()}
    declared = {
        f"{package}.{line.split()[1]}"
        for file in (ROOT / "protos").rglob("*.proto")
        for package in [next(line for line in file.read_text().splitlines() if line.startswith("package "))[8:-1]]
        for line in file.read_text().splitlines()
        if line.startswith("service ")
    }
    assert named == declared


def test_an_rpc_without_an_access_rule_stops_the_start_up() -> None:
    with pytest.raises(contract.ContractError, match=r"/test\.v1\.TestService/Open does not say who may call it"):
        contract.policies([_service_without_options()])


def test_an_rpc_without_an_error_dialect_stops_the_start_up() -> None:
    with pytest.raises(contract.ContractError, match="names no error dialect"):
        contract.policies([_service_without_options(access=options.ACCESS_USER)])


def _service_without_options(access: int = 0) -> descriptor_pool.Descriptor:
    file = descriptor_pb2.FileDescriptorProto(name="test.proto", package="test.v1", syntax="proto3")
    file.message_type.add(name="Empty")
    method = file.service.add(name="TestService").method.add(
        name="Open", input_type=".test.v1.Empty", output_type=".test.v1.Empty"
    )
    if access:
        method.options.Extensions[options.access] = access
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool.FindServiceByName("test.v1.TestService")


def test_the_reasons_of_the_code_are_those_of_the_protos() -> None:
    declared = {name.removeprefix("REASON_") for name, _ in errors_pb2.Reason.items()} - {"UNSPECIFIED"}
    assert {reason.name for reason in Reason} == declared


@pytest.mark.parametrize(
    "file", sorted((ROOT / "services").rglob("*.py")), ids=lambda file: str(file.relative_to(ROOT))
)
def test_imports_keep_to_their_rooms(file: Path) -> None:
    place = file.relative_to(ROOT / "services").parts
    if len(place) < 2 or "migrations" in place:
        return
    for module in _imports(file):
        package, *rest = module.split(".")
        if package != "services":
            assert package not in ("deploy", "tests", "bench"), f"{file.name} imports {module}"
            continue
        assert rest[0] == place[0], f"{place[0]} imports {rest[0]}: services meet over gRPC"
        if len(rest) > 1:
            assert _room(rest[1]) in ALLOWED[_room(file.stem)], f"{file.name} imports {module}"


@pytest.mark.parametrize("file", sorted((ROOT / "runtime").glob("*.py")), ids=lambda file: file.name)
def test_the_runtime_imports_nothing_from_the_services(file: Path) -> None:
    assert not [module for module in _imports(file) if module.split(".")[0] in ("services", "deploy", "tests", "bench")]


@pytest.mark.parametrize("file", sorted((ROOT / "services").rglob("*_domain.py")), ids=lambda file: file.name)
def test_a_domain_knows_neither_grpc_nor_tables(file: Path) -> None:
    forbidden = {"grpc", "sqlalchemy", "psycopg", "satchel", "google"}
    assert not [module for module in _imports(file) if module.split(".")[0] in forbidden]


def test_no_service_names_another_ones_schema() -> None:
    names = {file.parent.name for file in (ROOT / "services").glob("*/app.py")}
    for name in names:
        for file in (ROOT / "services" / name).rglob("*store.py"):
            text = file.read_text()
            assert not [other for other in names - {name} if f'schema="{other}"' in text or f" {other}." in text]


def test_every_schema_file_says_what_it_is() -> None:
    for file in DIRECTORY.glob("*.json"):
        assert f'"$id": "satchel:{file.stem}"' in file.read_text()


def _room(stem: str) -> str:
    name = stem.rpartition("_")[2] if stem not in ROOMS else stem
    return name if name in ROOMS else "part"


def _imports(file: Path) -> Iterator[str]:
    """Modules that are imported when the code runs; what only type checkers read makes no arrow."""
    tree = ast.parse(file.read_text())
    typed = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typed:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            known = node.module.count(".") == 1 and node.module.startswith("services.")
            yield from (f"{node.module}.{alias.name}" if known else node.module for alias in node.names)
