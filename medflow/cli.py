"""``medflow``: the one command, its verbs, and how an error ends it.

An error is one line ``error: …`` and one line ``hint: …`` on standard error; the exit code is that of the
error's class (`medflow.errors`), 2 for a command line that cannot be meant, 70 for what nobody foresaw and
130 after Ctrl-C or SIGTERM. ``--debug``, anywhere, adds the traceback.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, NoReturn

import typer

from medflow import __version__
from medflow.commands import choosing, data, judging, machine, models, running, schedules, serving, stacks
from medflow.commands.verb import Verb
from medflow.errors import MedflowError, of_disk

UNFORESEEN = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED = 130
READER_LEFT = 141  # 128 + SIGPIPE, as a shell counts

# Plain help: it loads nothing, reads well in a pipe, and its examples keep their lines.
app = typer.Typer(
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

VERBS = {
    "demo": running.demo,
    "datasets": data.datasets,
    "new": data.new,
    "phantom": data.phantom,
    "show": running.show,
    "run": running.run,
    "runs": running.runs,
    "logs": running.logs,
    "tune": choosing.tune,
    "compare": choosing.compare,
    "models": models.models,
    "report": models.report,
    "predict": models.predict,
    "evaluate": judging.evaluate,
    "promote": models.promote,
    "serve": models.serve,
    "deploy": serving.deploy,
    "undeploy": serving.undeploy,
    "deployments": serving.deployments,
    "dashboard": machine.dashboard,
    "verify": machine.verify,
    "doctor": machine.doctor,
}
for _name, _verb in VERBS.items():
    app.command(_name, cls=Verb)(_verb)  # type: ignore[type-var]
app.add_typer(stacks.app, name="stack")
app.add_typer(schedules.app, name="schedule")


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; stands anywhere.")] = False,
) -> None:
    """From a medical image dataset to a model in service, with the proof kept.

    \b
    Examples:
      medflow demo                                        every step, on generated images
      medflow run covid_radiography --source ~/covid.zip  train, compress, package, promote
      medflow serve production                            the model promoted last, over HTTP

    `medflow VERB --help` shows examples of a verb.
    """
    if version:
        typer.echo(f"medflow {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> NoReturn:
    """The console script."""
    # A terminated verb unwinds like an interrupted one, so that no server or worker of its own is left behind.
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(run(sys.argv[1:]))


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def run(arguments: Sequence[str]) -> int:
    """Run one command line; its exit code. Errors are told on standard error, never raised."""
    words, debug = _without_debug(arguments)
    verb = next((word for word in words if word in VERBS), "")
    return guarded(lambda: app(args=words, prog_name="medflow", standalone_mode=False) or 0, verb=verb, debug=debug)


def guarded(work: Callable[[], int], *, verb: str, debug: bool) -> int:
    """The exit code of ``work``; where it raises, the error is told and has an exit code of its own."""
    try:
        return work()
    except MedflowError as error:
        _tell(error, error.message, error.hint, debug)
        return error.exit_code
    except typer.TyperException as error:
        _tell(
            error, error.format_message(), f"`{' '.join(filter(None, ('medflow', verb)))} --help` shows examples", debug
        )
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader left, as `| head` does. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_LEFT
    except Exception as error:
        refused = of_disk(error)
        if refused is not None:
            _tell(error, refused.message, refused.hint, debug)
            return refused.exit_code
        _tell(error, f"{type(error).__name__}: {error}", "this was not foreseen; `--debug` shows the traceback", debug)
        return UNFORESEEN


def _without_debug(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """``--debug`` is taken out wherever it stands before a ``--``."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    kept = [word for word in arguments[:end] if word != "--debug"]
    return [*kept, *arguments[end:]], len(kept) < end


def _tell(error: Exception, message: str, hint: str, debug: bool) -> None:
    if debug:
        traceback.print_exception(error)
    print(f"error: {_one_line(message)}", file=sys.stderr)
    print(f"hint: {_one_line(hint)}", file=sys.stderr)


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    main()
