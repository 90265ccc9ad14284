"""Writes gen/ from protos/: Python of messages and services, type stubs, the edge's descriptors, OpenAPI."""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
GEN = ROOT / "gen"

# An error's details travel as google.protobuf.Any: Envoy prints only types that are in its descriptor set.
ERROR_DETAILS = "google/rpc/error_details.proto"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", type=Path, help="write only the protos with their source info, for buf")
    parser.add_argument("--protos", type=Path, default=PROTOS, help="the folder to read")
    arguments = parser.parse_args()
    if arguments.image is None:
        generate(arguments.protos, GEN)
    else:
        write_image(arguments.protos, arguments.image)


def generate(protos: Path, gen: Path) -> None:
    """Replaces `gen` in one step, so that an interrupted run leaves the previous one whole."""
    with tempfile.TemporaryDirectory(prefix=".gen-", dir=gen.parent) as scratch:
        fresh, stale = Path(scratch, "fresh"), Path(scratch, "stale")
        fresh.mkdir()
        # Touched before protoc reads anything: a proto saved meanwhile is newer than the stamp.
        (fresh / ".stamp").touch()
        # Two runs: in one, Python for google/rpc would land in gen/ beside the installed one.
        _protoc(
            protos,
            f"--plugin=protoc-gen-mypy={_plugin('protoc-gen-mypy')}",
            f"--plugin=protoc-gen-mypy_grpc={_plugin('protoc-gen-mypy_grpc')}",
            *(f"--{kind}_out={fresh}" for kind in ("python", "grpc_python")),
            *(f"--{kind}_out=quiet:{fresh}" for kind in ("mypy", "mypy_grpc")),
            *_sources(protos),
        )
        _protoc(
            protos,
            "--include_imports",
            f"--descriptor_set_out={fresh / 'satchel.pb'}",
            *_sources(protos),
            ERROR_DETAILS,
        )
        _write_reference(protos, fresh, Path(scratch, "sources.binpb"))
        if gen.exists():
            gen.rename(stale)
        fresh.rename(gen)
        shutil.rmtree(stale, ignore_errors=True)


def write_image(protos: Path, image: Path) -> None:
    """Writes the protos with their comments, and for `buf lint` those they import: it has no network to find them."""
    _protoc(
        protos,
        "--include_imports",
        "--include_source_info",
        f"--descriptor_set_out={image}",
        *_sources(protos),
    )


def _write_reference(protos: Path, fresh: Path, sources: Path) -> None:
    write_image(protos, sources)
    # In another process: it imports what has just been written, and this one may have imported what was there before.
    path = os.pathsep.join((str(fresh), str(ROOT)))
    command = [sys.executable, "-m", "deploy.openapi", str(sources), str(protos), str(fresh / "openapi.json")]
    if subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False).returncode != 0:
        raise SystemExit("the reference of the REST paths could not be written")


def _sources(protos: Path) -> list[str]:
    return sorted(str(path.relative_to(protos)) for path in protos.glob("satchel/**/*.proto"))


def _protoc(protos: Path, *arguments: str) -> None:
    includes = (protos, _package("grpc_tools") / "_proto", _package("google.rpc").parent.parent)
    code: int = protoc.main(["protoc", *(f"--proto_path={path}" for path in includes), *arguments])
    if code != 0:
        raise SystemExit(f"protoc refused {protos} (exit code {code})")


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"the package {name} is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


def _plugin(name: str) -> Path:
    """A console script of this interpreter's environment, whether or not that is on PATH."""
    return Path(sys.executable).parent / name


if __name__ == "__main__":
    main()
