"""What one GPU shows in eight minutes: a study of a model of real size, with no download.

    python scripts/gpu_proof.py                            # 8 G parameters, dense
    python scripts/gpu_proof.py --moe                      # 30 G parameters, 3 G of them for a token
    python scripts/gpu_proof.py --engine /opt/vllm         # vLLM in an environment of one's own
    python scripts/gpu_proof.py --rehearse                 # a tiny model on CPU: is everything in place?

Makes the model (its weights are the engine's to make up), runs ``search_spaces/gpu-proof.yaml``, prints the
recommendation, and leaves in ``--to``: the study file, ``studies.db`` with the archive beside it,
``report.html`` and ``summary.json``. What was interrupted goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

NOTHING_RECOMMENDED = 1
"""Exit code of a study that ran, and whose SLAs nothing met: what it showed is kept all the same."""
MODELS = (("dense-8b", "moe-30b-a3b"), ("tiny-dense", "tiny-moe"))
"""By whether it is a rehearsal, and a mixture of experts."""


def main() -> None:
    """Make the model, run the study, keep what it showed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--moe", action="store_true", help="a mixture of experts in place of the dense model")
    parser.add_argument("--engine", type=Path, help="environment of vLLM; else the one that is installed")
    parser.add_argument("--rehearse", action="store_true", help="a tiny model on CPU cores")
    parser.add_argument("--to", type=Path, default=Path("build/gpu-proof"), help="folder of what is made")
    args = parser.parse_args()
    to = args.to.absolute()
    to.mkdir(parents=True, exist_ok=True)
    kind = MODELS[args.rehearse][args.moe]
    autotune("models", "make", kind, str(to / kind))
    study = study_of(to / kind, rehearse=args.rehearse)
    YAML().dump(study, to / "study.yaml")
    engine = ["--engine", f"vllm={args.engine.absolute()}"] if args.engine else []
    storage = ["--storage", f"sqlite:///{to}/studies.db"]
    autotune("tune", str(to / "study.yaml"), *engine, *storage)
    told = {
        word: autotune(word, study["name"], "--json", *storage, quiet=True) for word in ("show", "recommend")
    }
    summary = {"model": kind, **{word: json.loads(text) for word, text in told.items()}}
    (to / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    autotune("report", study["name"], "-o", str(to / "report.html"), *storage)
    print(f"left in {to}: study.yaml, studies.db and its archive, report.html, summary.json")


def study_of(model: Path, *, rehearse: bool) -> dict[str, Any]:
    """The study file's data, of this model."""
    text = files("search_spaces").joinpath("gpu-proof.yaml").read_text(encoding="utf-8")
    study: dict[str, Any] = YAML(typ="safe").load(text)
    study |= {"name": f"{study['name']}-{model.name}", "model": str(model)}
    if rehearse:
        (engine,) = study["engines"]
        del engine["args"], study["space"]["dimensions"]["graph_capture"], study["hardware"]
        engine["fixed"] = {"context_length": 2048, "eager": True}  # the CPU build captures no graphs
        study["workloads"] = [{"name": "chat", "input_tokens": 64, "output_tokens": 32}]
        interactive, bulk = study["slas"]
        interactive["slos"], bulk["slos"] = {"tpot": "200ms"}, {"ttft": {"p90": "8s"}}
        study["measurement"]["saturating_concurrency"] = 16
        study["budget"] = {"launches": 6, "wall_time": "8m"}
    return study


def autotune(*words: str, quiet: bool = False) -> str:
    """What a command prints, as it goes unless ``quiet``; ends this program with it if it fails."""
    command = [sys.executable, "-m", "autotune", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE if quiet else None, text=True, check=False)
    if done.returncode not in {0, NOTHING_RECOMMENDED}:
        sys.exit(done.returncode)
    return done.stdout or ""


if __name__ == "__main__":
    main()
