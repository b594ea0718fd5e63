"""The command `bitnet`: one file per subcommand, imported when it is called."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from bitnet.cli.failures import explain, forget_output
from bitnet.cli.options import complete, read_lines

# Name -> the module whose `command` it is, and what --help says of it.
COMMANDS = {
    "run": ("bitnet.cli.run", "Write on after a prompt."),
    "chat": ("bitnet.cli.chat", "Talk with a model."),
    "serve": ("bitnet.cli.serve", "Answer over HTTP, as OpenAI's API does."),
    "batch": ("bitnet.cli.batch", "Answer a file of requests, in OpenAI's batch format."),
    "embed": ("bitnet.cli.embed", "Turn texts into vectors."),
    "plan": ("bitnet.cli.plan", "Say how much memory a model will take, before it is loaded."),
    "convert": ("bitnet.cli.convert", "Write a model as another file: GGUF or packed safetensors."),
    "compile": ("bitnet.cli.compile", "Make a model a shared library, for this machine or another."),
    "inspect": ("bitnet.cli.inspect", "Show what a model file holds."),
    "pull": ("bitnet.cli.pull", "Fetch a model by its name."),
    "list": ("bitnet.cli.list", "List the models in the cache, or those that can be fetched."),
    "show": ("bitnet.cli.show", "Say what is known of a model in the cache."),
    "rm": ("bitnet.cli.rm", "Delete a model from the cache."),
    "perplexity": ("bitnet.cli.perplexity", "Measure how well a model predicts a text."),
    "eval": ("bitnet.cli.eval", "Count how often a model picks the right one of several texts."),
    "compare": ("bitnet.cli.compare", "Measure two models side by side: speed, memory, quality, likeness."),
    "quantize": ("bitnet.cli.quantize", "Make a float model ternary, without training."),
    "train": ("bitnet.cli.train", "Train a model: pretrain, fine-tune or distill."),
    "export": ("bitnet.cli.export", "Write what was trained as a model file."),
    "bench": ("bitnet.cli.bench", "Measure tokens per second and memory bandwidth."),
    "bench serve": ("bitnet.cli.bench_serve", "Put load on a server and measure what its users feel."),
    "tune": ("bitnet.cli.tune", "Find the fastest settings for a model on this machine."),
    "top": ("bitnet.cli.top", "Watch a server in the terminal."),
    "monitor": ("bitnet.cli.monitor", "Watch a server on a dashboard in the browser."),
    "doctor": ("bitnet.cli.doctor", "Say what this machine is and whether the kernels are right."),
}
HELP = {"help_option_names": ["-h", "--help"]}


class Commands(TyperGroup):
    """Lists the commands without importing them."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands: Any = dict.fromkeys(COMMANDS)  # the names, for "Did you mean ...?"

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        both = " ".join(args[:2])  # "bench serve" is a command of its own
        return super().resolve_command(ctx, [both, *args[2:]] if both in COMMANDS else args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module, summary = COMMANDS[cmd_name]
        # An option that is not given comes from the environment: --ctx-size from BITNET_CTX_SIZE; where it may be
        # repeated, a value a line.
        settings = {"auto_envvar_prefix": "BITNET", **HELP}
        command = typer.Typer(add_completion=False, rich_markup_mode=None)
        command.command(cmd_name, help=summary, context_settings=settings)(complete(import_module(module).command))
        made: Any = typer.main.get_command(command)
        for each in made.params:
            if getattr(each, "multiple", False):
                each.value_from_envvar = partial(read_lines, each)
        return made

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


app = typer.Typer(cls=Commands, rich_markup_mode=None, context_settings=HELP)


@app.callback(invoke_without_command=True)
def root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", "-V", help="Print the version and leave.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Run 1-bit and ternary (1.58-bit) language models."""
    if version:
        from bitnet import __version__

        typer.echo(f"bitnet {__version__}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave with 0, 1 (failed), 2 (usage), 3 (model invalid) or 130 (interrupted)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        code = typer.main.get_command(app).main(args=given, prog_name="bitnet", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        code = forget_output()
    except (Exception, KeyboardInterrupt) as error:
        if wants_traceback(given):
            raise
        code = explain(error)
    sys.exit(code if isinstance(code, int) else 0)


def wants_traceback(given: Sequence[str]) -> bool:
    return "--debug" in given or os.environ.get("BITNET_DEBUG", "0").lower() not in ("", "0", "false", "no")
