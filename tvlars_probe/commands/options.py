"""Options in sections, and options that take all the words that follow them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tvlars_probe.errors import nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Option(click.Option):
    """An option that belongs to a section of the help.

    Args:
        section: title of the section.
        greedy: whether the option takes every word up to the next option. Its value is a tuple then.
        *args: of `click.Option`.
        **kwargs: of `click.Option`.
    """

    def __init__(self, *args: Any, section: str = "Options", greedy: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **{"show_default": True, "multiple": greedy, **kwargs})
        self.section, self.greedy = section, greedy


class FilePath(click.Path):
    """A path, in which ``~`` is the home folder even where the shell leaves it, as in ``--run-dir=~/runs/mine``."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"path_type": Path, **kwargs})

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if "\0" in str(value):  # no shell can give it, but a grid's file can
            self.fail(f"{value!r} holds a null character, which no path can.", param, ctx)
        return super().convert(os.path.expanduser(value), param, ctx)  # noqa: PTH111 (a user unknown is no error)


HELP_NAMES = {"help_option_names": ["-h", "--help"]}
"""Settings that every command has itself, though the group above it has them, too.

click makes a command's help option once, by the names of the context that first asks for it. `sweep` makes contexts of
``train`` without the group: from then on ``train`` would lack ``-h``.
"""


class Command(click.Command):
    """A command whose help lists its options by section."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.context_settings = {**HELP_NAMES, **self.context_settings}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, self._spread(args))

    def _spread(self, args: list[str]) -> list[str]:
        """Spell out greedy options: ``--devices 0 1`` becomes ``--devices 0 --devices 1``.

        click's parser takes a fixed number of words per option, so that they are spread before it sees them.
        """
        greedy = {name for p in self.params if isinstance(p, Option) and p.greedy for name in p.opts}
        spread: list[str] = []
        current: str | None = None  # the greedy option whose words these are
        for arg in args:
            if arg.startswith("-") and not _is_number(arg):  # -2 is a value
                current = arg if arg in greedy else None
                spread.append(arg)
            elif current is None or spread[-1] == current:  # the option's first word follows it as it is
                spread.append(arg)
            else:
                spread += [current, arg]
        return spread

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # Sections stand in the order of their first option.
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            # Arguments stand in the usage and the text above; some versions of click give them an empty row here.
            record = None if isinstance(param, click.Argument) else param.get_help_record(ctx)
            if record is not None:
                sections.setdefault(getattr(param, "section", "Options"), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def option(*names: str, section: str, **kwargs: Any) -> Callable[..., Any]:
    """Declare an `Option` in a section of the help, as `click.option` does."""
    return click.option(*names, cls=Option, section=section, **kwargs)


class Choice(click.Choice[str]):
    """One of some names, in any case of letters: the official experiments' command lines have ``--sd None``."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__([*names], case_sensitive=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            self.fail(f"{error.message} {nearest(str(value), self.choices)}".rstrip(), param, ctx)


class Group(click.Group):
    """A command that has commands; of one that is mistyped the error names the nearest."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            # In click's words, but click knows only the commands that are loaded.
            ctx.fail(f"No such command {args[0]!r}. {nearest(args[0], self.list_commands(ctx))}".rstrip())
