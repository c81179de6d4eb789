"""Reads what a failed ``transformers serve`` left behind.

The model is loaded before the server listens, the KV cache made at the first request: a cache that does not
fit ends the generation loop, while the process lives on and answers every request with an error.
"""

from __future__ import annotations

from autotune.domain.launches.launch import Evidence, Failure, FailureClass
from launchers.failures import FailureRules, classify

# Texts of transformers 5.23.0; behind each, the source file that writes it, or the log of the tests.
RULES = FailureRules(
    at_start={
        FailureClass.REFUSED_ARGUMENTS: (
            r"No such option",  # unknown_flag.log
            r"Invalid value for '--",  # bad_value.log
            r"Option '--[\w-]+' requires an argument",  # click/exceptions.py
            r"Unsupported attention implementation: ",  # cli/serving/model_manager.py
            r"Unsupported dtype: ",  # cli/serving/model_manager.py
        ),
        FailureClass.UNSUPPORTED_QUANTIZATION: (
            r"Unsupported quantization method: ",  # cli/serving/model_manager.py
            r"Using `bitsandbytes` .*quantization requires ",  # quantizers/quantizer_bnb_*.py
        ),
        FailureClass.CHECKPOINT: (
            r"Error no file named .* found in directory",  # modeling_utils.py
            r"Unrecognized model in ",  # models/auto/configuration_auto.py
            r"Transformers does not recognize this architecture",  # models/auto/configuration_auto.py
            r"does not appear to have a file named ",  # utils/hub.py
            r"is not a local folder and is not a valid model identifier",  # utils/hub.py
            r"We couldn't connect to .* to load the files",  # utils/hub.py; not_on_the_hub.log
        ),
        FailureClass.UNSUPPORTED_COMBINATION: (
            r"does not support an attention implementation through",  # modeling_utils.py
            r"has been toggled on, but it cannot be used",  # modeling_utils.py; flash_missing.log
        ),
        FailureClass.OUT_OF_MEMORY: (
            r"Memory footprint .* is more than available memory",  # generation/continuous_batching/cache.py
        ),
    },
    prefixes=(
        r"\d{4}-\d\d-\d\d [\d:,]+ - ContinuousBatchingLogger - ERROR - ",  # cache_too_large.log
        r"\[transformers\] ",  # utils/logging.py
        r"Error: ",  # click/exceptions.py
        r"ERROR: +",  # uvicorn/logging.py; port_taken.log
    ),
    hollow=(
        r"^CBWorkerDeadError",  # cli/serving/utils.py: names the request that came too late
    ),
    dead=(
        r"Error in generation loop: ",  # generation/continuous_batching/continuous_api.py
        r"CB worker (?:is dead|died)",  # cli/serving/utils.py
    ),
)


def classify_failure(evidence: Evidence) -> Failure:
    """Name the cause of a failed launch and the line that tells it."""
    return classify(evidence, RULES)
