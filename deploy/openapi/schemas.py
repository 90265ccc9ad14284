"""Owns the JSON Schema of each message: as the edge reads it in a request, and as it prints it in an answer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, Final

from google.api import field_behavior_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from deploy.openapi.comments import Comments
from deploy.openapi.files import Files, with_domains

Schema = dict[str, Any]

_INT32: Final = {"type": "integer", "format": "int32", "minimum": -(2**31), "maximum": 2**31 - 1}
_UINT32: Final = {"type": "integer", "format": "uint32", "minimum": 0, "maximum": 2**32 - 1}
# Not a number in JSON, whose numbers are exact to 2^53 only.
_INT64: Final = {"type": "string", "format": "int64", "pattern": "^-?[0-9]{1,19}$"}
_UINT64: Final = {"type": "string", "format": "uint64", "pattern": "^[0-9]{1,20}$"}
_NUMBER: Final = {"type": "number", "format": "double"}

_SCALARS: Final[dict[int, Schema]] = {
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
    FieldDescriptor.TYPE_INT32: _INT32,
    FieldDescriptor.TYPE_SINT32: _INT32,
    FieldDescriptor.TYPE_SFIXED32: _INT32,
    FieldDescriptor.TYPE_UINT32: _UINT32,
    FieldDescriptor.TYPE_FIXED32: _UINT32,
    FieldDescriptor.TYPE_INT64: _INT64,
    FieldDescriptor.TYPE_SINT64: _INT64,
    FieldDescriptor.TYPE_SFIXED64: _INT64,
    FieldDescriptor.TYPE_UINT64: _UINT64,
    FieldDescriptor.TYPE_FIXED64: _UINT64,
    FieldDescriptor.TYPE_DOUBLE: _NUMBER,
    FieldDescriptor.TYPE_FLOAT: {**_NUMBER, "format": "float"},
}

# What has a form of its own in proto3's JSON.
_WELL_KNOWN: Final[dict[str, Schema]] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?s$"},
    "google.protobuf.Struct": {"type": "object", "additionalProperties": True},
    "google.protobuf.ListValue": {"type": "array", "items": {}},
    "google.protobuf.Value": {},
}


class Schemas:
    """The components that operations refer to, gathered as they are asked for."""

    def __init__(self, comments: Comments, files: Files) -> None:
        self._comments = comments
        self._files = files
        self._found: dict[str, Schema] = {}
        self._meant: dict[str, tuple[object, ...]] = {}

    @property
    def found(self) -> dict[str, Schema]:
        """All that was asked for, by its name."""
        return dict(sorted(self._found.items()))

    def answered(self, message: Descriptor, *, camel_case: bool = False) -> Schema:
        """A message as an answer holds it: what has no presence is always there."""

        def fill() -> Schema:
            always = [field for field in message.fields if not field.has_presence]
            return self._object(message, message.fields, always, answered=True, camel_case=camel_case)

        return self._component(_name(message), (message.full_name, True, camel_case), fill)

    def asked(self, message: Descriptor, *, camel_case: bool = False, without: Collection[str] = ()) -> Schema:
        """A message as a request holds it; fields named in `without` stand in the path."""

        def fill() -> Schema:
            fields = [field for field in message.fields if field.name not in without]
            required = [field for field in fields if is_required(field)]
            return self._object(message, fields, required, answered=False, camel_case=camel_case)

        name = _name(message) if message.name.endswith("Request") else f"{_name(message)}Input"
        return self._component(name, (message.full_name, False, camel_case, *sorted(without)), fill)

    def parameter(self, field: FieldDescriptor) -> Schema:
        """A field as it stands in a path or a query."""
        return self._field(field, answered=False, camel_case=False)

    def document(self, package: str, name: str) -> Schema:
        """A document of a package, and with it the domains that it speaks of."""

        def fill() -> Schema:
            found: Schema = with_domains(self._files.document(package, name), self._domain)
            return found

        return self._component(f"{package.split('.')[1]}.document.{name}", (package, name), fill)

    def _domain(self, name: str) -> str:
        def fill() -> Schema:
            found: Schema = with_domains(self._files.domain(name), self._domain)
            return found

        ref: str = self._component(f"domain.{name}", (name,), fill)["$ref"]
        return ref

    def _component(self, name: str, meant: tuple[object, ...], fill: Callable[[], Schema]) -> Schema:
        if self._meant.setdefault(name, meant) != meant:
            raise ValueError(f"{name} would be two things: {self._meant[name]} and {meant}")
        if name not in self._found:
            self._found[name] = {}  # what refers to itself finds its name taken
            self._found[name] = fill()
        return {"$ref": f"#/components/schemas/{name}"}

    def _object(
        self,
        message: Descriptor,
        fields: Iterable[FieldDescriptor],
        required: Iterable[FieldDescriptor],
        *,
        answered: bool,
        camel_case: bool,
    ) -> Schema:
        properties = {
            _spelled(field, camel_case): {
                **self._field(field, answered=answered, camel_case=camel_case),
                **_described(self._comments.of(field.full_name)),
            }
            for field in fields
        }
        names = [_spelled(field, camel_case) for field in required]
        return {
            "type": "object",
            **_described(self._comments.of(message.full_name)),
            "properties": properties,
            **({"required": names} if names else {}),
        }

    def _field(self, field: FieldDescriptor, *, answered: bool, camel_case: bool) -> Schema:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value = field.message_type.fields_by_name["value"]
            return {
                "type": "object",
                "additionalProperties": self._single(value, answered=answered, camel_case=camel_case),
            }
        single = self._single(field, answered=answered, camel_case=camel_case)
        return {"type": "array", "items": single} if field.is_repeated else single

    def _single(self, field: FieldDescriptor, *, answered: bool, camel_case: bool) -> Schema:
        if field.enum_type is not None:
            return _enum(field.enum_type)
        if field.message_type is None:
            return _SCALARS[field.type]
        if field.message_type.full_name in _WELL_KNOWN:
            return _WELL_KNOWN[field.message_type.full_name]
        message = field.message_type
        if answered:
            return self.answered(message, camel_case=camel_case)
        return self.asked(message, camel_case=camel_case)


def _enum(enum: EnumDescriptor) -> Schema:
    return {"type": "string", "enum": [value.name for value in enum.values]}


def is_required(field: FieldDescriptor) -> bool:
    """Whether a request without the field is refused."""
    return field_behavior_pb2.REQUIRED in field.GetOptions().Extensions[field_behavior_pb2.field_behavior]


def _name(message: Descriptor) -> str:
    """satchel.auth.v1.User is auth.User: services have messages of the same name."""
    _, service, _, *rest = message.full_name.split(".")
    return ".".join((service, *rest))


def _spelled(field: FieldDescriptor, camel_case: bool) -> str:
    return field.json_name if camel_case else field.name


def _described(text: str) -> Schema:
    return {"description": text} if text else {}
