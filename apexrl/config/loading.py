"""Loading a configuration: defaults, then a YAML file, then overrides of the command line.

The sections in :mod:`apexrl.config.sections` know which values are allowed; this module reads files and arguments and
says which file, key or argument is wrong. The command line is parsed by tyro from the same dataclasses, so that
``--help`` lists every field with its documentation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from apexrl.config.conversion import field_types, from_plain, nearest_path, to_plain, unknown_key, valid_paths
from apexrl.config.fields import ConfigError
from apexrl.config.sections import ExperimentConfig

T = TypeVar("T")


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice and reads ``1e-4`` as the number everybody means."""


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    loader.flatten_mapping(node)
    mapping: dict[Hashable, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not a string", key_node.start_mark)
        if key in mapping:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)
# YAML 1.1, which PyYAML implements, wants a dot in a float: without this 1e-4 would be a string.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def load_experiment(
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    algorithm_configs: Mapping[str, type],
    prog: str = "apex",
) -> ExperimentConfig[Any]:
    """The experiment in the YAML file ``path``, changed by ``overrides``.

    Args:
        path: YAML file. Sections and keys are those of :class:`ExperimentConfig`; what is absent keeps its default.
        overrides: Command line arguments such as ``["--learner.batch-size", "32"]``. ``--help`` prints all of them
            and exits.
        algorithm_configs: Name of an algorithm -> the dataclass of its section, which has a field ``name``. The
            caller passes ``apexrl.algorithms.CONFIGS``, because this package knows no algorithm.
        prog: Name of the program in the text of ``--help``.

    Raises:
        ConfigError: naming the file (or the command line), the full key, its value and what is allowed.
    """
    path = Path(path)
    raw = _read_mapping(path)
    name = _algorithm_name(path, raw, overrides, algorithm_configs)
    generic: Any = ExperimentConfig
    kind = generic[algorithm_configs[name]]
    section = raw.get("algorithm")
    raw["algorithm"] = {**(section if isinstance(section, Mapping) else {}), "name": name}
    with _naming(str(path)):
        config = from_plain(kind, raw, "", _candidates(kind))
    return _override(kind, config, overrides, prog)  # type: ignore[no-any-return]


def load_sections(
    path: str | os.PathLike[str], sections: Sequence[str], overrides: Sequence[str] = (), *, prog: str = "apex"
) -> tuple[Any, ...]:
    """The named sections of an experiment's file, for a service that needs no others.

    A replay shard starts from the experiment's file without importing an algorithm (and torch with it), so of the
    other sections only the names are checked. Overrides are written as for :func:`load_experiment`:
    ``["--replay.listen", "0.0.0.0:50051"]``.
    """
    path = Path(path)
    raw = _read_mapping(path)
    types = field_types(ExperimentConfig)
    for key in raw:
        if key not in types:
            raise ConfigError(f"{path}: {unknown_key(str(key), list(types))}")
    kind: Any = dataclasses.make_dataclass("Sections", [(name, types[name]) for name in sections], frozen=True)
    kind.__doc__ = f"Of an experiment's configuration: {', '.join(sections)}."
    with _naming(str(path)):
        config = from_plain(kind, {name: raw.get(name) for name in sections}, "", _candidates(kind))
    config = _override(kind, config, overrides, prog)
    return tuple(getattr(config, name) for name in sections)


def dump_yaml(config: Any) -> str:
    """The resolved configuration as YAML that loads back equal."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, default_flow_style=False, width=100, allow_unicode=True)


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    try:
        raw = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if raw is None:
        raise ConfigError(f"{path}: the file is empty; it must at least say which algorithm: {{name: ...}}")
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: holds a {type(raw).__name__}, must be a mapping of sections")
    return raw


def _algorithm_name(
    path: Path, raw: Mapping[str, Any], overrides: Sequence[str], algorithm_configs: Mapping[str, type]
) -> str:
    """The algorithm's name, from the command line or the file: it decides which fields its section has."""
    source, section = str(path), raw.get("algorithm")
    name = section.get("name") if isinstance(section, Mapping) else None
    for flag, value in _flags(overrides):
        if flag == "algorithm.name" and value is not None:
            source, name = "command line", value
    allowed = ", ".join(sorted(algorithm_configs))
    if section is not None and not isinstance(section, Mapping):
        raise ConfigError(f"{path}: algorithm is {section!r}, must be a section with a name (one of {allowed})")
    if name is None:
        raise ConfigError(f"{path}: algorithm.name is missing, must be one of {allowed}")
    if name not in algorithm_configs:
        nearest = nearest_path(str(name), sorted(algorithm_configs))
        raise ConfigError(f"{source}: algorithm.name is {name!r}, must be one of {allowed}; the nearest is {nearest}")
    return str(name)


def _candidates(kind: Any) -> list[str]:
    return [path for path, _ in valid_paths(kind)]


def _flags(overrides: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Field path and first value of every ``--flag value`` or ``--flag=value``."""
    for i, argument in enumerate(overrides):
        if argument.startswith("--"):
            flag, equals, value = argument[2:].partition("=")
            follows = overrides[i + 1] if i + 1 < len(overrides) else None
            yield flag.replace("-", "_"), value if equals else follows


def _check_flags(kind: Any, overrides: Sequence[str]) -> None:
    types = dict(valid_paths(kind))
    for flag, _ in _flags(overrides):
        section, _, leaf = flag.rpartition(".")
        positive = f"{section}.{leaf.removeprefix('no_')}".lstrip(".")
        if flag in types or flag == "help" or types.get(positive) is bool:
            continue
        nearest = str(nearest_path(flag, list(types))).replace("_", "-")
        raise ConfigError(f"command line: --{flag.replace('_', '-')} is not a known option; the nearest is --{nearest}")


def _override(kind: Any, config: Any, overrides: Sequence[str], prog: str) -> Any:
    if not overrides:
        return config
    import tyro  # slow to import, and most processes have no overrides

    _check_flags(kind, overrides)
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            changed = tyro.cli(kind, default=config, args=list(overrides), prog=prog)
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise ConfigError(f"command line: {_box_text(output.getvalue())}") from None
    with _naming("command line"):
        # The same check of types and finiteness that a file goes through.
        return from_plain(kind, to_plain(changed), "", _candidates(kind))


def _box_text(text: str) -> str:
    """The message inside the frame that tyro draws: everything above its first rule, on one line."""
    lines = []
    for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines():
        inner = line.strip().strip("│|╭╮╰╯ ").strip()
        if line.startswith(("╭", "╰", "+")):
            continue
        if inner and not inner.strip("─-"):
            break
        lines.append(inner)
    return " ".join(line for line in lines if line) or text.strip()


@contextlib.contextmanager
def _naming(source: str) -> Iterator[None]:
    """Put the file, or "command line", before the message of a :class:`ConfigError`."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
