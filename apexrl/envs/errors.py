"""Messages about environments that cannot be made."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from apexrl.config import ConfigError, EnvConfig


def nearest(name: str, choices: Iterable[str], count: int = 3) -> list[str]:
    """The choices most like ``name``, best first; capitals, '_' and '-' do not count."""
    by_plain = {_plain(choice): choice for choice in choices}
    found = difflib.get_close_matches(_plain(name), by_plain, n=count, cutoff=0.5)
    return [by_plain[plain] for plain in found]


def unknown_name(env_id: str, suite: str, name: str, choices: Sequence[str]) -> ConfigError:
    """The error for a name that a suite does not have: the nearest valid ids, or all when none is near."""
    close = nearest(name, choices)
    listed = ", ".join(f"{suite}/{choice}" for choice in (close or choices))
    return ConfigError(
        f"env.id is {env_id!r}: suite {suite!r} has no {name!r}; {'nearest' if close else 'it has'}: {listed}"
    )


def refuse_options(config: EnvConfig, suite: str, *names: str) -> None:
    """Raise :class:`ConfigError` if an option that this suite cannot honour is switched on."""
    for name in names:
        value = getattr(config, name)
        if value:
            raise ConfigError(
                f"env.{name} is {value!r}, must be {type(value)(0)!r} for env.id {config.id!r} "
                f"(suite {suite!r} has no such option)"
            )


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")
