"""Owns what the comments of the protos say: of each service, rpc, message and field, and which errors to expect."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet

# Numbers of fields in descriptor.proto, of which the paths of source info are made.
_FILE_MESSAGE: Final = 4
_FILE_ENUM: Final = 5
_FILE_SERVICE: Final = 6
_MESSAGE_FIELD: Final = 2
_MESSAGE_NESTED: Final = 3
_MESSAGE_ENUM: Final = 4
_SERVICE_METHOD: Final = 2

Place = tuple[int, ...]

_ERRORS: Final = re.compile(r"(?:^|\n\n)Errors: ((?:.|\n(?!\n))*)")
# As far as the first thing that is said; a stop inside of brackets or of a word is none.
_SENTENCE: Final = re.compile(r"(?:\([^)]*\)|[.:;](?!\s|$)|[^.:;(])*")
_MAX_SUMMARY_CHARS: Final = 100


class Comments:
    """The comment above each thing, by its full name."""

    def __init__(self, sources: FileDescriptorSet) -> None:
        self._texts = {name: text for file in sources.file for name, text in _commented(file)}

    def of(self, full_name: str) -> str:
        """The comment above a thing, as Markdown; empty: there is none."""
        return self._texts.get(full_name, "")

    def summary_of(self, full_name: str) -> str:
        """The first sentence, or what of it there is room for in a list."""
        said = _SENTENCE.match(self.of(full_name).replace("\n", " "))
        summary = said[0].strip() if said else ""
        if len(summary) > _MAX_SUMMARY_CHARS:
            summary = summary[:_MAX_SUMMARY_CHARS].rpartition(",")[0] or summary[:_MAX_SUMMARY_CHARS].rpartition(" ")[0]
        return summary

    def without_errors(self, full_name: str) -> str:
        """The comment without what it says after `Errors:`."""
        return _ERRORS.sub("", self.of(full_name)).strip()

    def errors_of(self, full_name: str) -> str:
        """What the comment says after `Errors:`."""
        said = _ERRORS.search(self.of(full_name))
        return said[1] if said else ""


def _commented(file: FileDescriptorProto) -> Iterator[tuple[str, str]]:
    names = dict(_places(file))
    for location in file.source_code_info.location:
        name = names.get(tuple(location.path))
        if name and location.leading_comments:
            lines = (line.removeprefix(" ") for line in location.leading_comments.rstrip().split("\n"))
            yield name, "\n".join(lines)


def _places(file: FileDescriptorProto) -> Iterator[tuple[Place, str]]:
    for index, service in enumerate(file.service):
        yield (_FILE_SERVICE, index), (name := f"{file.package}.{service.name}")
        for number, method in enumerate(service.method):
            yield (_FILE_SERVICE, index, _SERVICE_METHOD, number), f"{name}.{method.name}"
    yield from _of_messages(file.message_type, (_FILE_MESSAGE,), file.package)
    for index, enum in enumerate(file.enum_type):
        yield (_FILE_ENUM, index), f"{file.package}.{enum.name}"


def _of_messages(messages: Iterable[DescriptorProto], place: Place, scope: str) -> Iterator[tuple[Place, str]]:
    for index, message in enumerate(messages):
        here, name = (*place, index), f"{scope}.{message.name}"
        yield here, name
        for number, field in enumerate(message.field):
            yield (*here, _MESSAGE_FIELD, number), f"{name}.{field.name}"
        for number, enum in enumerate(message.enum_type):
            yield (*here, _MESSAGE_ENUM, number), f"{name}.{enum.name}"
        yield from _of_messages(message.nested_type, (*here, _MESSAGE_NESTED), name)
