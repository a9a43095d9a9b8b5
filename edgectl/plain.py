"""A protobuf message as JSON-like data: camelCase keys, every field, numbers as numbers.

For `-o json` of answers that are no resources. Enum values are told as words (`place`, `dies`).
"""

from typing import Any


def plain(message: Any) -> dict[str, Any]:
    """Fields that are not set have their default, so that programs find every key."""
    return {
        field.json_name: _value(field, getattr(message, field.name))
        for field in message.DESCRIPTOR.fields
    }


def enum_word(field: Any, number: int) -> str:
    """`CHANGE_ACTION_PLACE` as `place`."""
    name = field.enum_type.values_by_number[number].name
    prefix = field.enum_type.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return str(name.removeprefix(prefix).lower())


def _value(field: Any, value: Any) -> Any:
    if field.is_repeated:
        return [_single(field, item) for item in value]
    return _single(field, value)


def _single(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return plain(value)
    if field.enum_type is not None:
        return enum_word(field, value)
    return value.decode(errors="replace") if isinstance(value, bytes) else value
