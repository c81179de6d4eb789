"""Programs that SGLang's own interpreter runs to say what its parser has, and what it refuses."""

from __future__ import annotations

_START = """\
import argparse, json, os, sys

answer = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever imports print is kept out of the answer

from sglang.srt.server_args import ServerArgs
"""

# The parser needs the package and no device; what serves it is what PyTorch was built for.
PARSER_PROBE = (
    _START
    + """
import importlib.metadata

import torch

parser = argparse.ArgumentParser()
ServerArgs.add_cli_args(parser)
flags = {
    option: [str(choice) for choice in action.choices or ()]
    for action in parser._actions
    for option in action.option_strings
}
device = "rocm" if torch.version.hip else "cuda" if torch.version.cuda else "cpu"
version = importlib.metadata.version("sglang")
answer.write(json.dumps({"version": version, "device": device, "flags": flags}) + "\\n")
answer.close()
"""
)

# A child of its own for each command line: configurations leave settings behind in environment and modules,
# and one that kills its process says nothing of the others. Only what SGLang itself checks is a refusal: that
# a module or a device is missing here, or a model that is nowhere at hand, is not the configuration's fault.
CONFIG_PROBE = (
    _START
    + """
import re, select, signal, traceback

try:  # once, not in every child
    import sglang.srt.arg_groups.pipeline, sglang.srt.configs.model_config
except ImportError:
    traceback.print_exc()

ANSWER_TIMEOUT_S = 60
REFUSALS = (ValueError, AssertionError, NotImplementedError)


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ValueError(message)


def refusal(arguments):
    parser = Parser()
    ServerArgs.add_cli_args(parser)
    try:
        server_args = ServerArgs.from_cli_args(parser.parse_args(arguments))
        server_args.resolve_once()
        server_args.check_server_args()
    except REFUSALS as error:
        statement = traceback.extract_tb(error.__traceback__)[-1].line  # all that a bare assertion says
        return " ".join(str(error).split()) or f"{type(error).__name__}: {statement}"
    except Exception:
        traceback.print_exc()
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


def why(argv):
    if "serve" not in argv:  # the router
        return None
    filled = (re.sub(r"{port:[^}]*}", "30000", token) for token in argv[argv.index("serve") + 1 :])
    return asked_apart([re.sub(r"{host:[^}]*}", "127.0.0.1", token) for token in filled])


answer.write(json.dumps([why(argv) for argv in json.load(sys.stdin)]) + "\\n")
answer.close()
"""
)
