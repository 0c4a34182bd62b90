"""The `bc2` command: a table of verbs, each imported only when it runs.

`bc2 --help` reads the table alone. An error becomes what, where and what to do on
stderr and the exit code of its class; a traceback needs ``--debug``.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import sys
import threading
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn

import typer
from typer.core import TyperGroup

from bc2 import __version__
from bc2.console import ReaderGone, check_output, printable
from bc2.errors import (
    Bc2Error,
    Interrupted,
    ResourceError,
    RunFailed,
    TooManyOpenFiles,
    UsageError,
    from_os_error,
    nearest,
    out_of_memory,
    too_many_open_files,
)
from bc2.plugins import foreign_algorithms
from bc2.process import open_files, signals
from bc2.process.launcher_variables import set_aside
from bc2.process.standard_streams import install, start_again_in_utf8
from bc2.ranks import JOINING, RankFailed, end_with_launcher, first, rank, report_error, world_size

if TYPE_CHECKING:
    from typer._click import Command, Context, HelpFormatter


class Verb(NamedTuple):
    help: str
    module: str
    """Of `bc2.commands`."""
    makes: tuple[str, ...] = ()
    """Commands of the module that end in an artifact; "" is the verb itself. They have --quiet,
    which prints the artifact's ref alone."""


VERBS: dict[str, Verb] = {
    "data": Verb(
        "Prepare a corpus, token shards, chats and pairs.",
        "data",
        ("prep", "tokenize", "chats", "pairs"),
    ),
    "train-tokenizer": Verb(
        "Train a SentencePiece tokenizer on a corpus.", "train_tokenizer", ("",)
    ),
    "pretrain": Verb("Train a base model, building what it needs first.", "pretrain", ("",)),
    "sft": Verb("Fine-tune a model on conversations.", "sft", ("",)),
    "reward": Verb("Train a reward model on pairs of answers.", "reward", ("",)),
    "dpo": Verb("Train a chat model on pairs of answers, without a reward model.", "dpo", ("",)),
    "score-reward": Verb("Score answers by reward models.", "score_reward"),
    "ladder": Verb("Train the sizes of a recipe that a scaling law is fitted to.", "ladder", ("",)),
    "fit-scaling-law": Verb(
        "Fit a law to small runs or a table; predict a large one.", "fit_scaling_law", ("",)
    ),
    "eval": Verb("Evaluate a model in benchmarks: MMLU, CMMLU, GSM8K ...", "eval", ("",)),
    "plan": Verb("Say what a run takes on given devices, and the layouts that fit.", "plan"),
    "bench": Verb("Measure training: speed, MFU, memory; beside a peer if asked.", "bench"),
    "verify": Verb("Prove on your machine that a run survives kills.", "verify", ("resume",)),
    "watch": Verb("Show a run as it goes on: loss, speed, time left.", "watch"),
    "report": Verb("Write a run's page: curves, samples, settings, lineage.", "report"),
    "generate": Verb("Continue a prompt with a trained model.", "generate"),
    "chat": Verb("Talk with a model that has a chat layout.", "chat"),
    "serve": Verb("Answer requests over HTTP as OpenAI's server does.", "serve"),
    "convert": Verb("Write a checkpoint for other tools, proven equal.", "convert", ("",)),
    "merge": Verb("Make one model of several, or of an adapter and its base.", "merge", ("",)),
    "registry": Verb(
        "List, trace, verify and clean registered artifacts.", "registry", ("tag", "import")
    ),
    "recipe": Verb("List, show and check recipes.", "recipe"),
    "doctor": Verb("Show versions and devices, and what is wrong here.", "doctor"),
}


class LazyGroup(TyperGroup):
    """A group whose commands are the table `VERBS`, and the algorithms of other packages."""

    def list_commands(self, ctx: Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        if cmd_name in VERBS:
            app = importlib.import_module(f"bc2.commands.{VERBS[cmd_name].module}").app
        elif cmd_name in foreign_algorithms():
            app = importlib.import_module("bc2.launch.training_verb").algorithm_app(cmd_name)
        else:
            return None
        command = typer.main.get_command(app)
        command.name = cmd_name
        return command

    def resolve_command(
        self, ctx: Context, args: list[str]
    ) -> tuple[str | None, Command | None, list[str]]:
        known = not args or args[0].startswith("-") or args[0] in VERBS
        if not known and args[0] not in foreign_algorithms():
            guess = nearest(args[0], [*VERBS, *foreign_algorithms()])
            hint = f" Did you mean {guess!r}?" if guess else " See `bc2 --help`."
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Context) -> Any:
        try:
            with signals.interruptible():
                return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            # Before typer makes an exit code 1 of it.
            raise _interrupted(stop) from None
        except ReaderGone:
            raise typer.Exit(0) from None

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.help) for name, verb in VERBS.items()])


app = typer.Typer(
    cls=LazyGroup,
    rich_markup_mode=None,
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"bc2 {__version__}")
        raise typer.Exit


@app.callback(help="One command for the whole life of a large language model.")
def _top(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    # The deepspeed launcher gives it to whatever it starts, and says it in LOCAL_RANK too.
    local_rank: Annotated[int, typer.Option("--local_rank", hidden=True)] = 0,
) -> None:
    """Global options; the verbs are in `VERBS`."""


def explain(error: BaseException) -> Bc2Error | None:
    """Say an exception in terms of `bc2.errors`, or None for a defect of ours."""
    if (limited := _too_many_open_files(error)) is not None:
        return limited
    if isinstance(error, Bc2Error):
        return error
    if isinstance(error, KeyboardInterrupt):  # outside of a command
        return _interrupted(error)
    if isinstance(error, OSError):
        return from_os_error(error, "working")
    if isinstance(error, UnicodeEncodeError):
        return _unencodable(error)
    if out_of_memory(error):
        return ResourceError("out of memory", todo="lower micro_batch, or the size of the model")
    return None


def _after_signal(error: BaseException) -> BaseException:
    """The signal behind an error: libraries make other errors of what it raised in them."""
    signum = signals.raised()
    code = error.code if isinstance(error, SystemExit) else getattr(error, "exit_code", 1)
    if signum is None or code in (None, 0, 128 + signum):
        return error
    return _interrupted(signals.SignalReceived(signum))


def _interrupted(stop: KeyboardInterrupt) -> Interrupted:
    again = "run the same command again; finished stages are not repeated"
    return Interrupted("interrupted", signum=signals.signal_of(stop), todo=again)


def _unencodable(error: UnicodeEncodeError) -> Bc2Error | None:
    """Of a name with bytes that are no UTF-8, or one that the locale has no bytes for."""
    text = ascii(error.object[max(0, error.start - 100) : error.end + 100])
    if error.reason == "surrogates not allowed":
        return UsageError(
            "a name or text is not UTF-8", where=text, todo="rename the file, or mend the text"
        )
    if error.encoding == sys.getfilesystemencoding():
        what = f"this locale ({error.encoding}) cannot name the file"
        return RunFailed(what, where=text, todo="set LC_ALL=C.UTF-8, or PYTHONUTF8=1")
    return None


def _too_many_open_files(error: BaseException) -> TooManyOpenFiles | None:
    """What is told where it is behind an error that no more file could be opened.

    Whatever could not be opened then is neither gone nor damaged, as its reader may say.
    """
    behind: BaseException | None = error
    while behind is not None and not isinstance(behind, TooManyOpenFiles | RankFailed):
        if open_files.none_left(behind):
            where = error.where if isinstance(error, Bc2Error) else None
            return too_many_open_files(behind, "working", where=where)
        behind = behind.__cause__ or behind.__context__
    return None


def render(error: Bc2Error) -> str:
    """The lines a person sees on stderr."""
    if isinstance(error, RankFailed):
        return error.said
    lines = [f"error: {printable(error.what)}"]
    if error.where:
        lines.append(f"  where: {printable(error.where)}")
    if error.todo:
        lines.append(f"  to do: {printable(error.todo)}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit with the code of the design."""
    args = sys.argv[1:] if argv is None else argv
    install()
    if argv is None:
        start_again_in_utf8()
    with set_aside():
        open_files.raise_limit()
        end_with_launcher()
        try:
            app(args=args, prog_name="bc2")
        except BaseException as error:
            code = _fail(_after_signal(error), debug="--debug" in args)
        code = code or _judge_output()
        if signals.received() or (world_size() > 1 and _has_joined()):
            _leave(code)
        sys.exit(code)


def _has_joined() -> bool:
    """Whether this rank has a process group of torch's, or still waits for one in C++."""
    if any(thread.name == JOINING for thread in threading.enumerate()):
        return True
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def _leave(code: Any) -> NoReturn:
    """End as `sys.exit` does, but for the teardown of native libraries.

    Threads of torch's process groups may still run then, and now and again that aborts a rank
    which had ended well, or had said why not. And a teardown that hangs is deaf to signals.
    """
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are no daemons
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _judge_output() -> Any:
    """The exit code of a command that has ended well, but for what it printed."""
    try:
        check_output()
    except ReaderGone:
        return 0
    except Bc2Error as lost:
        return _fail(lost, debug=False)
    return 0


def _fail(error: BaseException, *, debug: bool) -> Any:
    if isinstance(error, SystemExit):
        return error.code
    known = explain(error)
    if known is None or debug:
        import traceback

        traceback.print_exception(error)
    told = render(known) if known else f"error: this is a defect of {_whose()}, please report it"
    if not report_error(told, lasting=known is not None and known.lasting):
        print(told if first() else f"rank {rank()}: {told}", file=sys.stderr)
    return known.exit_code if known else 1


def _whose() -> str:
    """Who can mend what nobody expected: also an algorithm of another package, if one ran."""
    if not foreign_algorithms.cache_info().currsize:
        return "bc2"  # none was looked for
    ran = [name for name in foreign_algorithms() if name in sys.argv]
    return f"the package that brings the algorithm {ran[0]!r}, or of bc2" if ran else "bc2"


if __name__ == "__main__":
    main()
