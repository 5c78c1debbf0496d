"""The ``spikedim`` command: one thin verb per file, errors as one clear line."""

from __future__ import annotations

import re
import sys
import traceback
from typing import Any, NoReturn, cast

import typer

from spikedim.cli import (
    audit,
    calibrate,
    circuits,
    data,
    design,
    export,
    info,
    measure,
    models,
    ntk,
    order,
    profile,
    rank,
    report,
    sweep,
    train,
    validate,
)
from spikedim.errors import SpikedimError
from spikedim.storage import system_fault

app = typer.Typer(
    name="spikedim",
    help="Design bench for spiking transformers: how many timesteps, at what spike and energy "
    "cost, and how sure. Start with: spikedim design --data digits --model spikformer_nano "
    "--verify",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command()(design.design)
app.command()(measure.measure)
app.command()(profile.profile)
app.command()(train.train)
app.command()(sweep.sweep)
app.command()(report.report)
app.command()(validate.validate)
app.command()(calibrate.calibrate)
app.command()(audit.audit)
app.command()(ntk.ntk)
app.command()(rank.rank)
app.command()(order.order)
app.command()(circuits.circuits)
app.command()(export.export)
app.add_typer(models.app, name="models")
app.add_typer(data.app, name="data")
app.command()(info.info)


_INTERRUPTED = 130
_TERMINATED = 143
_GO_ON = (
    "interrupted: run the same command again; train, sweep, design --verify or --pilot, validate, "
    "ntk --out and rank --compare-gates go on where they stopped, the others start anew"
)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 a mistake the user can mend, 1 a fault of ours.

    Args:
        arguments: command-line words; ``sys.argv[1:]`` when omitted. ``--debug`` anywhere
            shows the traceback of an error.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    code = 0
    try:
        # Not standalone: usage errors come here instead of being printed by the parser.
        code = app(words, prog_name="spikedim", standalone_mode=False) or 0
    except SpikedimError as error:
        _fail(f"error: {_as_typed(str(error), words)}", 2, debug)
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except SystemExit as stop:
        if stop.code != _TERMINATED:
            raise
        code = _TERMINATED
    except OSError as error:
        _fail(f"error: {system_fault(error)}", 2, debug)
    except Exception as error:
        usage = getattr(error, "format_message", None)
        if usage is not None:
            text = " ".join(usage().split())
            _fail(f"error: {text} (see spikedim {_verb(words)}--help)", 2, debug)
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        _fail(f"internal error: {text} (add --debug and report this)", 1, debug)
    if code in (_INTERRUPTED, _TERMINATED):  # typer turns Ctrl-C into the one
        _fail(_GO_ON, code, debug)
    raise SystemExit(code)


def _verb(words: list[str]) -> str:
    return f"{words[0]} " if words and words[0] in _commands() else ""


def _commands() -> dict[str, Any]:
    return dict(cast(typer.core.TyperGroup, typer.main.get_command(app)).commands)


def _as_typed(text: str, words: list[str]) -> str:
    """The message with the options of this command in place of the parameters they stand for.

    Code in brackets and paths stay as they are, and so do single words without a value.
    """
    command = _commands().get(words[0]) if words else None
    options = {p.name: p.opts[0] for p in getattr(command, "params", ()) if p.opts[0][:1] == "-"}

    def typed(match: re.Match[str]) -> str:
        name, equals = match[1], match[2]
        if name not in options or not (equals or "_" in name):
            return match[0]
        return options[name] + (" " if equals else "")

    return re.sub(r"\([^()]*\)|(?<![\w./-])([a-z]\w*)\b(=(?=\S))?(?![/.]\w)", typed, text)


def _fail(message: str, code: int, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    if sys.stderr is not None:  # closed: print would take standard output
        print(message, file=sys.stderr)  # with its line breaks: it may hold code to paste
    raise SystemExit(code)
