"""Reading typed settings: YAML, dotted overrides, and one message with every fault.

Every config class of the project derives from `Settings`: frozen, an unknown key is an error with the nearest name,
and the text under a field is its documentation. This module knows no field of any of them.
"""

import difflib
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from gpo.errors import UserError

NO_TEXT = re.compile("[\ud800-\udfff\0]")
"""Half a surrogate pair, and the character 0."""


class Settings(BaseModel):
    """Frozen, strict about names, and documented by the text under each field."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic would take `true` for 1."""
        if isinstance(value, bool) and not _takes_bool(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError(f"found {str(value).lower()}; this setting is no switch")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _text_can_be_written(cls, value: Any, info: ValidationInfo) -> Any:
        """Neither a file's name nor a file of JSON can hold half a surrogate pair, nor a name a character 0."""
        texts = [value]
        if isinstance(value, list | tuple):
            texts = [*value]
        elif isinstance(value, dict) and _settings_below(cls, str(info.field_name)) is None:
            texts = [*value, *value.values()]
        for text in texts:
            if isinstance(text, str) and NO_TEXT.search(text):
                raise ValueError(f"{text!r:.60} has half a surrogate pair or a character 0 in it; mend the text")
        return value


SomeSettings = TypeVar("SomeSettings", bound=Settings)


def read_settings(kind: type[SomeSettings], path: Path | None, overrides: Sequence[str] = ()) -> SomeSettings:
    """Settings of a YAML file (None: defaults) with dotted overrides; raises UserError with all faults at once."""
    values = {} if path is None else _read_yaml(path)
    mistaken = []
    for override in overrides:
        try:
            _apply_override(values, override)
        except UserError as error:
            mistaken.append(str(error))
    if mistaken:
        raise UserError("\n".join(mistaken))
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        faults = "\n".join(f"  - {_describe(kind, fault)}" for fault in error.errors())
        raise UserError(f"{path or kind.__name__}: {error.error_count()} fault(s) in the settings:\n{faults}") from None


def _takes_bool(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(map(_takes_bool, typing.get_args(annotation)))


class NoKeyTwice(yaml.SafeLoader):
    """PyYAML's safe loader, but a key that stands twice in a mapping is an error and not silently the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping; raises ConstructorError naming the key and its line."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice; keep one of them", key.start_mark
                )
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read the config ({error}); expected a YAML file") from None
    try:
        values = yaml.load(text, Loader=NoKeyTwice)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of settings, found {type(values).__name__}")
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"{override!r}: expected key=value, for example train.learning_rate=1e-5")
    *parents, last = key.split(".")
    for parent in parents:
        if values.get(parent) is None:
            values[parent] = {}
        child = values[parent]
        if not isinstance(child, dict):
            raise UserError(f"{override!r}: {parent} holds {child!r}, it has no settings below it")
        values = child
    try:
        values[last] = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"{override!r}: the value is not valid YAML: {error}") from None


def _describe(kind: type[BaseModel], fault: Any) -> str:
    """One sentence: the dotted field, the value found, what was expected, and a near name where there is one."""
    where = ".".join(str(part) for part in fault["loc"]) or "the whole config"
    if fault["type"] == "extra_forbidden":
        return f"{where}: unknown key{_nearest(kind, fault['loc'])}"
    if fault["type"] == "missing":
        return f"{where}: missing; it has no default"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error" and isinstance(fault["input"], dict):
        return f"{where}: {message}" if fault["loc"] else message
    return f"{where} = {fault['input']!r}: {message}"


def _nearest(kind: type[BaseModel], location: tuple[Any, ...]) -> str:
    owner: type[BaseModel] | None = kind
    for part in location[:-1]:
        owner = _settings_below(owner, str(part)) if owner else None
    names = list(owner.model_fields) if owner else []
    near = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known here: {', '.join(sorted(names))}"


def _settings_below(owner: type[BaseModel], name: str) -> type[BaseModel] | None:
    field = owner.model_fields.get(name)
    if field is None:
        return None
    annotation = field.annotation
    choices = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    for choice in choices:
        if isinstance(choice, type) and issubclass(choice, BaseModel):
            return choice
    return None


def dump_yaml(settings: Settings) -> str:
    """The resolved settings, complete, in the order of the classes."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
