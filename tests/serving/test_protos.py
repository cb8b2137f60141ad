"""The wire does not change behind anybody's back.

After an addition, `make protos` and
`python -m grpc_tools.protoc -I . --descriptor_set_out=tests/goldens/descriptors.binpb protos/*.proto`.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet

from protos import admin_pb2, catalog_pb2, events_pb2, impression_pb2, recommender_pb2

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "goldens" / "descriptors.binpb"
SOURCES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "protos").glob("*.proto"))
FILES = (admin_pb2, catalog_pb2, events_pb2, impression_pb2, recommender_pb2)


def facts(descriptors: FileDescriptorSet) -> dict[str, str]:
    """What must never change or vanish, by a name that must never be given to anything else."""
    found: dict[str, str] = {}
    for file in descriptors.file:
        for message in file.message_type:
            found.update(_message_facts(f"{file.package}.{message.name}", message))
        for enum in file.enum_type:
            found.update({f"{file.package}.{enum.name}#{each.number}": each.name for each in enum.value})
        for service in file.service:
            for method in service.method:
                streams = f"{method.client_streaming:d}{method.server_streaming:d}"
                found[f"{file.package}.{service.name}/{method.name}"] = (
                    f"{method.input_type} -> {method.output_type} {streams}"
                )
    return found


def _message_facts(path: str, message: DescriptorProto) -> Iterator[tuple[str, str]]:
    yield path, "message"
    for field in message.field:
        label = FieldDescriptorProto.Label.Name(field.label)
        kind = FieldDescriptorProto.Type.Name(field.type)
        yield f"{path}#{field.number}", f"{field.name} {label} {kind} {field.type_name} {field.proto3_optional}"
    for nested in message.nested_type:
        yield from _message_facts(f"{path}.{nested.name}", nested)


def broken(golden: FileDescriptorSet, now: FileDescriptorSet) -> list[str]:
    current = facts(now)
    return [
        f"{name}: {what} became {current.get(name)}"
        for name, what in facts(golden).items()
        if current.get(name) != what
    ]


def now() -> FileDescriptorSet:
    descriptors = FileDescriptorSet()
    for file in FILES:
        copied = FileDescriptorProto()
        file.DESCRIPTOR.CopyToProto(copied)
        descriptors.file.append(copied)
    return descriptors


def golden() -> FileDescriptorSet:
    return FileDescriptorSet.FromString(GOLDEN.read_bytes())


def test_no_field_number_name_or_type_of_the_golden_wire_has_changed() -> None:
    assert broken(golden(), now()) == []


def test_every_field_is_in_the_golden_wire_so_that_it_is_guarded_from_now_on() -> None:
    assert broken(now(), golden()) == []


@pytest.mark.parametrize("change", ["remove", "renumber", "rename", "retype", "relabel", "method", "enum"])
def test_the_golden_wire_notices(change: str) -> None:
    changed = golden()
    file = next(each for each in changed.file if each.name == "protos/recommender.proto")
    message = next(each for each in file.message_type if each.name == "Context")
    if change == "remove":
        del message.field[0]
    elif change == "renumber":
        message.field[0].number = 99
    elif change == "rename":
        message.field[0].name = "other"
    elif change == "retype":
        message.field[0].type = FieldDescriptorProto.TYPE_BYTES
    elif change == "relabel":
        message.field[0].label = FieldDescriptorProto.LABEL_REPEATED
    elif change == "method":
        del file.service[0].method[0]
    else:
        file.enum_type[0].value[1].number = 99
    assert broken(golden(), changed)


def test_the_committed_code_is_what_the_compiler_makes(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    out = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", "-I", ".", *out, *SOURCES], cwd=ROOT, check=True)
    made = {path.name: path.read_bytes() for path in (tmp_path / "protos").iterdir()}
    committed = {path.name: path.read_bytes() for path in (ROOT / "protos").glob("*_pb2*")}
    assert made.keys() == committed.keys()
    different = [name for name, text in made.items() if committed[name] != text]
    assert different == []


def test_what_slate_calls_share_has_one_number_in_all_of_them() -> None:
    messages = recommender_pb2.DESCRIPTOR.message_types_by_name
    for kind, last in (("Request", 16), ("Response", 11)):
        shared = [_shared(messages[f"{method}{kind}"], last) for method in ("Recommend", "Search", "Rank")]
        assert shared[0] == shared[1] == shared[2]
        assert len(shared[0]) == last


def _shared(message: Descriptor, last: int) -> list[tuple[int, str, int]]:
    return sorted((field.number, field.name, field.type) for field in message.fields if field.number <= last)
