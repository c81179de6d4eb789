"""Programs that the engine's own interpreter runs to say what its parser has, and what it refuses."""

from __future__ import annotations

_START = """\
import json, sys

import torch
from transformers import __version__
from transformers.cli.transformers import app

if not hasattr(app, "commands"):  # older versions describe their commands to typer alone
    from typer.main import get_command

    app = get_command(app)
serve = app.commands["serve"]
"""

PARSER_PROBE = (
    _START
    + """
def choices(option):
    return [str(getattr(choice, "value", choice)) for choice in getattr(option.type, "choices", None) or ()]


flags = {
    flag: choices(option)
    for option in serve.params
    if option.param_type_name == "option"
    for flag in (*option.opts, *option.secondary_opts)
}
# A build for GPUs serves on the CPU where there is none.
device = "cpu" if not torch.cuda.is_available() else "rocm" if torch.version.hip else "cuda"
print(json.dumps({"version": __version__, "device": device, "flags": flags}))
"""
)

# Its own validation is that of its model manager, which loads nothing unless a model is forced on it.
CONFIG_PROBE = (
    _START
    + """
from transformers.cli.serving.model_manager import ModelManager

CHECKED = ("device", "dtype", "attn_implementation", "quantization")


def refusal(arguments):
    try:
        given = serve.make_context("serve", list(arguments)).params
        ModelManager(**{name: given[name] for name in CHECKED})
    except (Exception, SystemExit) as error:
        told = getattr(error, "format_message", None)
        return " ".join((told() if told else str(error)).split()) or type(error).__name__
    return None


commands = [argv[argv.index("serve") + 1 :] for argv in json.load(sys.stdin)]
print(json.dumps([refusal(arguments) for arguments in commands]))
"""
)
