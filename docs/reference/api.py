"""The page of the gRPC API: protos/*.proto, whose comments are the text."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)
from grpc_tools import protoc

from docs.reference.markdown import code, prose, table

ROOT = Path(__file__).parents[2]
FILES = ("recommender", "events", "catalog", "admin", "impression")
HEAD = """\
# API reference

Made from the comments of `protos/*.proto` by `make reference`. Every message and service is in the package
`cascade.v1`. An `optional` field tells "not set" from zero. How to call it from a program: [clients](clients.md).
"""
Comments = Mapping[tuple[int, ...], str]


def page() -> str:
    """The whole page; needs grpcio-tools."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "descriptors"
        sources = [f"protos/{name}.proto" for name in FILES]
        flags = [f"--proto_path={ROOT}", "--include_source_info", f"--descriptor_set_out={out}"]
        if protoc.main(["protoc", *flags, *sources]):
            raise ValueError(f"protoc refuses one of {', '.join(sources)}")
        made = {each.name: each for each in FileDescriptorSet.FromString(out.read_bytes()).file}
    return "\n\n".join([HEAD.rstrip(), *(text for name in sources for text in _file(made[name]))]) + "\n"


def _file(file: FileDescriptorProto) -> Iterator[str]:
    comments = {
        tuple(at.path): "\n".join(each.strip("\n") for each in (at.leading_comments, at.trailing_comments) if each)
        for at in file.source_code_info.location
    }
    yield f"## {file.name.removeprefix('protos/')}"
    yield _paragraphs(comments.get((12,), ""))
    for n, service in enumerate(file.service):
        yield from _service(service, comments, (6, n))
    for n, message in enumerate(file.message_type):
        yield from _message(message, comments, (4, n))
    for n, enum in enumerate(file.enum_type):
        yield from _enum(enum, comments, (5, n))


def _service(service: ServiceDescriptorProto, comments: Comments, path: tuple[int, ...]) -> Iterator[str]:
    yield f"### {service.name}"
    yield prose(comments.get(path, ""))
    rows = [
        (code(method.name), _signature(method), prose(comments.get((*path, 2, n), "")))
        for n, method in enumerate(service.method)
    ]
    yield table(("method", "request and response", "what it does"), rows)


def _signature(method: MethodDescriptorProto) -> str:
    streams = ("stream of " if method.client_streaming else "", "stream of " if method.server_streaming else "")
    return f"{streams[0]}{_link(method.input_type)} to {streams[1]}{_link(method.output_type)}"


def _message(message: DescriptorProto, comments: Comments, path: tuple[int, ...]) -> Iterator[str]:
    yield f"### {message.name}"
    if text := comments.get(path, ""):
        yield prose(text)
    maps = {each.name: each for each in message.nested_type if each.options.map_entry}
    rows = [
        (code(field.name), _type(field, maps), str(field.number), prose(comments.get((*path, 2, n), "")))
        for n, field in enumerate(message.field)
    ]
    yield table(("field", "type", "number", "meaning"), rows) if rows else "No fields."
    for n, nested in enumerate(message.nested_type):
        if nested.name not in maps:
            yield from _message(nested, comments, (*path, 3, n))
    for n, enum in enumerate(message.enum_type):
        yield from _enum(enum, comments, (*path, 4, n))


def _enum(enum: EnumDescriptorProto, comments: Comments, path: tuple[int, ...]) -> Iterator[str]:
    yield f"### {enum.name}"
    if text := comments.get(path, ""):
        yield prose(text)
    rows = [
        (code(value.name), str(value.number), prose(comments.get((*path, 2, n), "")))
        for n, value in enumerate(enum.value)
    ]
    yield table(("value", "number", "meaning"), rows)


def _type(field: FieldDescriptorProto, maps: Mapping[str, DescriptorProto]) -> str:
    name = field.type_name.rpartition(".")[2]
    if name in maps:
        key, value = maps[name].field
        return f"map of {_single(key)} to {_single(value)}"
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {_single(field)}"
    return f"optional {_single(field)}" if field.proto3_optional else _single(field)


def _single(field: FieldDescriptorProto) -> str:
    if field.type_name:
        return _link(field.type_name)
    return FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()


def _link(type_name: str) -> str:
    name = type_name.rpartition(".")[2]
    return f"[{name}](#{name.lower()})"


def _paragraphs(comment: str) -> str:
    """A comment of some paragraphs. Indented lines are a list: a name, and what it means."""
    blocks: list[tuple[bool, list[str]]] = []
    for line in comment.splitlines():
        listed = line.startswith("   ")
        if not line.strip():
            blocks.append((False, []))
        elif blocks and blocks[-1][0] == listed and blocks[-1][1]:
            blocks[-1][1].append(line)
        else:
            blocks.append((listed, [line]))
    return "\n\n".join(_list(lines) if listed else prose(" ".join(lines)) for listed, lines in blocks if lines)


def _list(lines: Sequence[str]) -> str:
    rows: list[list[str]] = []
    for line in lines:
        name, _, text = line.strip().partition(" ")
        if line.startswith("    "):  # goes on
            rows[-1][1] += f" {line.strip()}"
        else:
            rows.append([code(name), text.strip()])
    return table(("status", "where"), rows)
