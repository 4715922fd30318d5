"""Run the command line: parse, call, print. Results go to stdout, progress and errors to stderr."""

import errno
import logging
import os
import sys
import warnings
from collections.abc import Sequence

import click

import foreword
from foreword.cli.bias import bias
from foreword.cli.compare import compare
from foreword.cli.demo import demo
from foreword.cli.ensemble import ensemble
from foreword.cli.episodes import episodes
from foreword.cli.evaluate import evaluate
from foreword.cli.export import export
from foreword.cli.import_ import import_
from foreword.cli.keys import keys
from foreword.cli.lists import methods, models, tasks
from foreword.cli.predict import predict
from foreword.cli.retrain import retrain
from foreword.cli.serve import serve
from foreword.cli.show import show
from foreword.cli.train import train
from foreword.errors import ForewordError

USER_ERROR, FAILURE, INTERRUPTED = 2, 1, 130


class _InOrder(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(foreword.__version__, message="foreword %(version)s")
def cli() -> None:
    """Learn, compare and reuse prompts for a frozen language model.

    \b
    Start here:
      foreword demo
      foreword compare --model gpt2 --data DIR --methods manual,prompt-tuning --out runs/x
      foreword train prefix-tuning --model gpt2 --data DIR --out artefacts/x -o length=20
      foreword predict artefacts/x "a text"

    A model is a folder, a hub name or an embedded one (`foreword models`). Data is a folder, a file, hf:owner/name or
    an embedded task (`foreword tasks`).
    """


for command in (
    demo, compare, train, retrain, ensemble, evaluate, episodes, predict, bias, serve, keys, show, export, import_,
    methods, models, tasks,
):  # fmt: skip
    cli.add_command(command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 2 for what the user can correct, 1 for the rest, 130 when stopped."""
    try:
        code = cli.main(
            args=None if arguments is None else list(arguments), prog_name="foreword", standalone_mode=False
        )
        return code if isinstance(code, int) else 0
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "foreword"
        return _fail(f"{error.format_message().rstrip('.')}. See `{path} --help`.", USER_ERROR)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except ForewordError as error:
        return _fail(str(error), USER_ERROR)
    except (KeyboardInterrupt, click.Abort):
        return _fail("stopped.", INTERRUPTED)
    except OSError as error:
        if error.errno == errno.EPIPE:  # the reader of our pipe has gone: head, less
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        if error.errno is None:
            raise
        where = f" {error.filename}" if error.filename else ""
        return _fail(f"cannot read or write{where}: {error.strerror}.", FAILURE)


def _fail(message: str, code: int) -> int:
    said = " ".join(message.split())
    click.echo(f"Error: {said}{'' if said.endswith(('.', '!', '?', ')')) else '.'}", err=True)
    return code


def main() -> None:
    """Run the `foreword` command and exit with its code."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for library in ("torchao", "torch.utils._pytree"):  # where it is installed, its import names kernels it cannot use
        logging.getLogger(library).setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    code = run()
    if code == INTERRUPTED:
        # Where Ctrl-C came during an exec() inside some import, Python would end by the signal instead of this code.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
