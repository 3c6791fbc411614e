"""The generated pages of docs/: the command line's reference from its help, tables and features from their definitions.

    python docs/generate.py

A test compares what stands in docs/ with what this writes.
"""

from pathlib import Path

import click

from tvlars_probe.analyses.warmup.features import named_features
from tvlars_probe.cli import COMMANDS, main
from tvlars_probe.queries.runs_table import RUNS
from tvlars_probe.traces.schema import TABLES

HERE = Path(__file__).parent / "reference"


COMPLETION = """## Completion by the shell

The shell completes commands, options, their choices and paths once it has read a script that `tvlars-probe` writes. For
bash, add to `~/.bashrc`:

```text
eval "$(_TVLARS_PROBE_COMPLETE=bash_source tvlars-probe)"
```

For zsh, add to `~/.zshrc`:

```text
eval "$(_TVLARS_PROBE_COMPLETE=zsh_source tvlars-probe)"
```

For fish, add to `~/.config/fish/completions/tvlars-probe.fish`:

```text
_TVLARS_PROBE_COMPLETE=fish_source tvlars-probe | source
```
"""


def command_line() -> str:
    """docs/reference/cli.md."""
    parts = [f"# Command line\n\nGenerated from `--help` by `make docs`.\n\n{COMPLETION}"]
    with click.Context(main, info_name="tvlars-probe", terminal_width=100, **main.context_settings) as root:
        parts.append(_help("tvlars-probe", main.get_help(root)))
        for name in COMMANDS:
            command = main.get_command(root, name)
            assert command is not None
            with click.Context(command, info_name=name, parent=root, terminal_width=100) as context:
                parts.append(_help(f"tvlars-probe {name}", command.get_help(context)))
                for child_name, child in (command.commands if isinstance(command, click.Group) else {}).items():
                    with click.Context(child, info_name=child_name, parent=context, terminal_width=100) as inner:
                        parts.append(_help(f"tvlars-probe {name} {child_name}", child.get_help(inner)))
    return "\n".join(parts)


def _help(title: str, text: str) -> str:
    return f"## {title}\n\n```text\n{text}\n```\n"


def tables() -> str:
    """docs/reference/tables.md."""
    parts = [
        "# Tables\n\nGenerated from `tvlars_probe/traces/schema.py` by `make docs`. [traces.md](traces.md) says what "
        "the symbols mean and how to read the tables. The last table, `runs`, lies in no file: "
        "[query](../guides/query.md) makes it from the manifests.\n"
    ]
    for table in (*TABLES.values(), RUNS):
        rows = [f"| {c.name} | {c.type} | {c.unit} | {c.definition} |".replace("|g|", "\\|g\\|") for c in table.columns]
        head = ["| column | type | unit | definition |", "|---|---|---|---|"]
        parts.append("\n".join([f"## {table.name}", "", table.about, "", *head, *rows, ""]))
    return "\n".join(parts)


def features() -> str:
    """docs/reference/warmup_features.md."""
    head = (
        "# Features of a run\n\nGenerated from `tvlars_probe/analyses/warmup/features.py` by `make docs`. These "
        "figures are computed from a run's trace; rules on [warm-up](../evidence/verdicts.md) may read nothing else. "
        "*Early* are the first 20 updates. *Late* is the last quarter of the recorded updates, without the early ones. "
        "A *weight* has two or more dimensions, other tensors are *vectors*.\n"
    )
    rows = [f"| {f.name} | {f.unit} | {f.meaning} |" for f in named_features()]
    return "\n".join([head, "| feature | unit | what it is |", "|---|---|---|", *rows, ""])


PAGES = {"cli.md": command_line, "tables.md": tables, "warmup_features.md": features}

if __name__ == "__main__":
    for page, write in PAGES.items():
        (HERE / page).write_text(write(), encoding="utf-8")
