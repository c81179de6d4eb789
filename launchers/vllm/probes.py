"""Programs that vLLM's own interpreter runs to say what its parser has, and what it refuses."""

from __future__ import annotations

_START = """\
import json, os, sys

answer = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # vLLM logs to standard output, which is kept for the answer

from vllm import __version__, platforms

device = platforms.current_platform.device_type
without_gpu = platforms.current_platform.is_unspecified()  # a CUDA build on a machine without a GPU
if without_gpu:
    from vllm.platforms.cpu import CpuPlatform

    device, platforms.current_platform = "cuda", CpuPlatform()

from vllm.entrypoints.cli import serve
from vllm.utils.argparse_utils import FlexibleArgumentParser
"""

# `cmd_init` is what the `vllm` command itself calls, and has kept its place while the parser behind it moved.
PARSER_PROBE = (
    _START
    + """
parser = serve.cmd_init()[0].subparser_init(FlexibleArgumentParser().add_subparsers())
flags = {
    option: [str(choice) for choice in action.choices or ()]
    for action in parser._actions
    for option in action.option_strings
}
# Any text passes the parser for these, but not what comes after it.
from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
from vllm.plugins import load_general_plugins
from vllm.tool_parsers import ToolParserManager

load_general_plugins()  # they bring methods of their own
flags["--quantization"] = list(QUANTIZATION_METHODS)
flags["--tool-call-parser"] = list(ToolParserManager.list_registered())
answer.write(json.dumps({"version": __version__, "device": device, "flags": flags}) + "\\n")
answer.close()
"""
)

# A child of its own for each command line: configurations leave settings behind in environment and modules,
# and one that kills its process says nothing of the others. Both are null then: no refusal was heard.
CONFIG_PROBE = (
    _START
    + """
import re, select, signal

from vllm.engine.arg_utils import AsyncEngineArgs

ANSWER_TIMEOUT_S = 60


class Parser(FlexibleArgumentParser):
    def error(self, message):
        raise ValueError(message)


def message_of(error):
    errors = getattr(error, "errors", None)  # pydantic's: its own text is for programmers
    text = errors()[0]["msg"].removeprefix("Value error, ") if callable(errors) else str(error)
    text = re.sub(r" \\[type=\\w+, input_value=.*", "", " ".join(text.split()))
    return text or type(error).__name__


def refusal(arguments):
    try:
        command, parser = serve.cmd_init()[0], Parser()
        command.subparser_init(parser.add_subparsers())
        args = parser.parse_args(["serve", *arguments])
        args.model = getattr(args, "model_tag", None) or args.model
        command.validate(args)
        if not without_gpu:  # what it would say of the configuration, it would say of a CPU
            AsyncEngineArgs.from_cli_args(args).create_engine_config()
    except (Exception, SystemExit) as error:
        return message_of(error)
    return None


def asked_apart(arguments):
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writable, json.dumps(refusal(arguments))[:60000].encode())
        finally:
            os._exit(0)
    os.close(writable)
    with os.fdopen(readable) as pipe:
        heard = select.select([pipe], [], [], ANSWER_TIMEOUT_S)[0] and pipe.read()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return json.loads(heard) if heard else None


commands = [argv[argv.index("serve") + 1 :] for argv in json.load(sys.stdin)]
answer.write(json.dumps([asked_apart(arguments) for arguments in commands]) + "\\n")
answer.close()
"""
)
