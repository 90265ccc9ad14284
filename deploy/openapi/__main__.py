"""Writes the OpenAPI document: `python -m deploy.openapi SOURCES PROTOS OUT`, with Python of the protos on its path."""

import argparse
import json
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from deploy.openapi.comments import Comments
from deploy.openapi.document import document
from deploy.openapi.files import Files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", type=Path, help="the protos as descriptors with their source info")
    parser.add_argument("protos", type=Path, help="the folder that the protos are in")
    parser.add_argument("out", type=Path, help="where to write")
    arguments = parser.parse_args()
    comments = Comments(FileDescriptorSet.FromString(arguments.sources.read_bytes()))
    found = document(comments, Files(arguments.protos))
    arguments.out.write_text(json.dumps(found, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


main()
