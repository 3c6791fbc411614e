"""The command line: one group whose commands are loaded when they are called."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

from tvlars_probe import __version__
from tvlars_probe.commands.options import Group
from tvlars_probe.errors import InterruptedRunError, RunFailedError, UserError
from tvlars_probe.extras import missing_extra

# By name: the module below tvlars_probe.commands, and the command's line in `--help`. The lines stand here so that the
# list of commands imports none of them.
COMMANDS = {
    "train": ("train", "Train a model and record every layer."),
    "sweep": ("sweep", "Train a grid of runs."),
    "init": ("init", "Write the file of a sweep, to be changed."),
    "branch": ("branch", "Go on from a checkpoint with several batch sizes."),
    "data": ("data", "Data sets: which are there, and how to get the others."),
    "sharpness": ("sharpness", "Measure the Hessian at a run's checkpoints."),
    "runs": ("runs", "List the runs below a folder."),
    "check": ("check", "Is a run whole? Set aside what is broken."),
    "doctor": ("doctor", "What is wrong with an optimizer, or with a run?"),
    "certify": ("certify", "Do 1, 2 and 4 ranks train and measure alike here?"),
    "show": ("show", "Show a run: configuration, progress, metrics, trust ratios."),
    "watch": ("watch", "Follow a run while it trains, or a folder of runs."),
    "board": ("board", "Show runs in a browser, while they train and after."),
    "warmup": ("warmup", "Was warm-up needed, for which layers, how long?"),
    "minimizer": ("minimizer", "Trapped in a sharp minimum, or escaped?"),
    "batch-size": ("batch_size", "How large may the batch be? Three answers side by side."),
    "compare": ("compare", "Optimizers, batch sizes and schedules side by side."),
    "query": ("query", "Ask the tables of runs in SQL."),
    "replay": ("replay", "Trust ratios that another variant would have given."),
    "landscape": ("landscape", "The loss around a minimum, or between two."),
    "chart": ("chart", "Draw a chart of runs into a file."),
    "export": ("export", "Send runs to TensorBoard, W&B, trackio or MLflow."),
    "report": ("report", "Write verdicts, charts and tables into one HTML page."),
}


class Root(Group):
    """The top-level command. It imports a command when it is called, and turns exceptions into exit codes.

    A user's error, a missing extra among them, is one line on stderr and exit code 2. A run that failed gives code 1, a
    run that a signal ended 128 plus the signal's number.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"tvlars_probe.commands.{COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            if (missing := missing_extra(f"tvlars-probe {ctx.invoked_subcommand}", error)) is None:
                raise
            raise missing from None

    def main(self, *args: Any, **kwargs: Any) -> Any:
        # A sign that the terminal's encoding lacks, as ‖ is lacking in Windows' code pages, is spelt out.
        if (reconfigure := getattr(sys.stdout, "reconfigure", None)) is not None:
            reconfigure(errors="backslashreplace")
        try:
            # Not standalone, click raises its errors instead of printing them, and returns the code of `ctx.exit`.
            code = super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.UsageError as error:
            # Called without arguments, click raises an error whose message is the whole help, which keeps its lines.
            is_help = error.ctx is not None and error.format_message() == error.ctx.get_help()
            click.echo(error.format_message(), err=True) if is_help else _fail(error.format_message())
            code = error.exit_code
        except click.ClickException as error:
            _fail(error.format_message())
            code = 2
        except UserError as error:
            _fail(str(error))
            code = 2
        except RunFailedError as error:  # before OSError: a StorageError is both
            _fail(str(error))
            code = 1
        except (KeyboardInterrupt, click.Abort):
            click.echo("Interrupted: the same command begins again", err=True)
            code = 130
        except InterruptedRunError as error:
            if error.advice:
                click.echo(error.advice, err=True)
            code = 128 + error.signal  # as a shell reports a process that a signal ended
        except BrokenPipeError:
            # The reader has gone, as `head` does. Python flushes stdout again at exit, and would complain on stderr.
            sys.stderr.close()
            code = 1
        except OSError as error:
            _fail(f"{error.filename or 'the system'}: {error.strerror or error}")
            code = 2
        sys.exit(code if isinstance(code, int) else 0)  # a command that ends without `ctx.exit` returns None


def _version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    """Print the versions that a bug report needs; torch's is told without importing it."""
    if not asked or ctx.resilient_parsing:
        return
    import platform

    from tvlars_probe.traces.environment import version_of

    torch = version_of("torch")
    click.echo(f"tvlars-probe {__version__}")
    click.echo(f"{f'torch {torch}' if torch else 'without torch'}, Python {platform.python_version()}")
    ctx.exit()


_LONGEST = 2000
"""Characters after which an error is cut: it may quote what a stranger has written."""


def _fail(message: str) -> None:
    """Print an error as one line, however many its message has."""
    from tvlars_probe.commands.text import say

    line = " ".join(message.split())
    say(f"Error: {line if len(line) <= _LONGEST else f'{line[:_LONGEST]} ...'}", err=True)


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version,
    help="Show the versions of tvlars-probe, torch and Python, and exit.",
)  # fmt: skip
def main() -> None:
    """Instrumented large-batch training.

    Train with LARS, LAMB, TVLARS or torch's optimizers while probes record every layer's norms and trust ratios, and
    ask the recorded trace what happened.
    """
