"""CIFF read by Google's protobuf library, from the message types that the CIFF project publishes."""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_KINDS = descriptor_pb2.FieldDescriptorProto
_MESSAGES = {
    "Header": [
        ("version", 1, _KINDS.TYPE_INT32),
        ("num_postings_lists", 2, _KINDS.TYPE_INT32),
        ("num_docs", 3, _KINDS.TYPE_INT32),
        ("total_postings_lists", 4, _KINDS.TYPE_INT32),
        ("total_docs", 5, _KINDS.TYPE_INT32),
        ("total_terms_in_collection", 6, _KINDS.TYPE_INT64),
        ("average_doclength", 7, _KINDS.TYPE_DOUBLE),
        ("description", 8, _KINDS.TYPE_STRING),
    ],
    "Posting": [("docid", 1, _KINDS.TYPE_INT32), ("tf", 2, _KINDS.TYPE_INT32)],
    "PostingsList": [
        ("term", 1, _KINDS.TYPE_STRING),
        ("df", 2, _KINDS.TYPE_INT64),
        ("cf", 3, _KINDS.TYPE_INT64),
        ("postings", 4, _KINDS.TYPE_MESSAGE),
    ],
    "DocRecord": [
        ("docid", 1, _KINDS.TYPE_INT32),
        ("collection_docid", 2, _KINDS.TYPE_STRING),
        ("doclength", 3, _KINDS.TYPE_INT32),
    ],
}


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="ciff.proto", package="ciff", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind in fields:
            repeated = kind == _KINDS.TYPE_MESSAGE
            label = _KINDS.LABEL_REPEATED if repeated else _KINDS.LABEL_OPTIONAL
            message.field.add(
                name=field, number=number, type=kind, label=label, type_name=".ciff.Posting" if repeated else None
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"ciff.{name}")) for name in _MESSAGES}


def read_ciff(content: bytes) -> tuple[Any, list[Any], list[Any]]:
    """Return (header, postings lists, document records); every byte must belong to one of them."""
    classes = _classes()
    at = 0

    def message(kind: str) -> Any:
        nonlocal at
        size = shift = 0
        while True:
            byte = content[at]
            at += 1
            size |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        found = classes[kind].FromString(content[at : at + size])
        at += size
        return found

    header = message("Header")
    lists = [message("PostingsList") for _ in range(header.num_postings_lists)]
    records = [message("DocRecord") for _ in range(header.num_docs)]
    assert at == len(content)
    return header, lists, records
