"""What every engine on PyTorch writes when it fails: regular expressions, with who writes each behind it.

They are looked for in messages without logging prefixes. Of two that a message matches the upper one counts.
"""

from __future__ import annotations

from collections.abc import Mapping

from autotune.domain.launches.launch import FailureClass

CAUSES: Mapping[FailureClass, tuple[str, ...]] = {
    FailureClass.NODE_FAULT: (
        r"uncorrectable ECC error encountered",  # CUDA and HIP runtime, error 214
        r"uncorrectable NVLink error",  # CUDA runtime, error 220
        r"\bGPU is lost\b",  # NVML, error 15
        r"fallen off the bus",  # NVIDIA's kernel module, Xid 79
        r"CUDA\w*: system not yet initialized|Error 802: system not yet initialized",  # no fabric manager
    ),
    FailureClass.DISK_FULL: (
        r"No space left on device|\[Errno 28\]|os error 28\b",  # ENOSPC; the last is Rust's: safetensors, hub
        r"Disk quota exceeded|\[Errno 122\]",  # EDQUOT
        r"\bFile too large\b|\[Errno 27\]",  # EFBIG: a limit on file sizes
    ),
    FailureClass.LICENSE: (
        r"\bGatedRepoError\b",  # huggingface_hub/errors.py
        r"You are trying to access a gated repo",  # transformers/utils/hub.py
        r"Access to model .* is restricted",  # the hub's own words
    ),
    FailureClass.DRIVER: (
        r"The NVIDIA driver on your system is too old",  # torch/csrc/cuda/Module.cpp
        r"Found no NVIDIA driver on your system",  # torch/csrc/cuda/Module.cpp
        r"CUDA driver version is insufficient for CUDA runtime version",  # CUDA runtime, error 35
        r"forward compatibility was attempted on non supported HW",  # CUDA runtime, error 804
        r"the provided PTX was compiled with an unsupported toolchain",  # CUDA runtime, error 222
        r"Driver/library version mismatch",  # NVML, error 18
        r"CUDA unknown error - this may be due to an incorrectly set up environment",  # c10/cuda
        r"No (?:CUDA|HIP) GPUs are available",  # c10/cuda, c10/hip
        r"lib(?:cuda|nvidia-ml|amdhip64)\.so[.\d]*: cannot open shared object file",  # the loader
    ),
    FailureClass.PORT_TAKEN: (
        r"\[Errno 98\]|EADDRINUSE|(?i:address already in use)",  # Linux, uvicorn
    ),
    FailureClass.OUT_OF_MEMORY: (
        r"(?i:out of memory)|OutOfMemoryError",  # CUDA and HIP runtime, PyTorch
        r"\bMemoryError\b",  # Python
        r"(?i:can(?:no|')t allocate memory)",  # Linux; c10/core/impl/alloc_cpu.cpp
        r"CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED",  # cuBLAS, cuDNN
    ),
    FailureClass.COMPILATION: (
        r"\bInductorError\b|\bBackendCompilerFailed\b|\bCppCompileError\b|\bInvalidCxxCompiler\b",  # inductor
        r"\btorch\._dynamo\.exc\.\w+",  # torch._dynamo
        r"No working C\+\+ compiler found",  # torch/_inductor/exc.py
        r"\btriton\.(?:compiler|runtime)\.\w+\.\w+: |^(?:Out[oO]fResources|CompilationError): ",  # triton
        r"Failed to find C compiler|PassManager::run failed|\bPTXASError\b|\bptxas (?:fatal|error)",  # triton
        r"out of resource: shared memory",  # triton/runtime/errors.py
        r"during capture\b|when stream is capturing|CUDA graph capture",  # CUDA runtime, errors 900 and 901
        r"Error building extension|Ninja is required|Ninja build failed",  # torch/utils, flashinfer
        r"\bnvcc fatal\b|Could not find (?:nvcc|CUDA installation)",  # nvcc; flashinfer/jit/cpp_ext.py
    ),
    FailureClass.REFUSED_ARGUMENTS: (
        r"^[\w. -]+: error: ",  # argparse
    ),
    FailureClass.UNSUPPORTED_QUANTIZATION: (
        r"_scaled_mm is only supported on ",  # PyTorch, aten/src/ATen/native/cuda/Blas.cpp
    ),
    FailureClass.CHECKPOINT: (
        r"(?:HFValidation|RepositoryNotFound|LocalEntryNotFound|RevisionNotFound)Error: ",  # huggingface_hub
        r"is not a local folder and is not a valid model identifier",  # transformers/utils/hub.py
        r"Transformers does not recognize this architecture",  # transformers' configuration_auto.py
        r"\bSafetensorError: |Error while deserializing header",  # safetensors
    ),
    FailureClass.UNSUPPORTED_COMBINATION: (
        r"no kernel image is available for execution on the device",  # CUDA and HIP runtime, error 209
        r"FlashAttention only supports ",  # flash-attention, csrc/flash_attn/flash_api.cpp
    ),
}  # fmt: skip

COMMUNICATION = (
    r"\b[NR]CCL error\b|\bnccl(?:System|Internal|UnhandledCuda|Remote|InvalidUsage)\w*",  # NCCL, RCCL
    r"unhandled (?:system|cuda) error",  # NCCL's names of ncclSystemError and ncclUnhandledCudaError
    r"Watchdog caught collective operation timeout",  # PyTorch, ProcessGroupNCCL.cpp
    r"\bDist(?:Backend|Network|Store)Error\b",  # torch.distributed
    r"\bgloo/transport|Gloo connectFullMesh failed",  # gloo
    r"The client socket has (?:timed out|failed to connect)",  # PyTorch, TCPStore's sockets
    r"\bibv_\w+ failed|\bNVSHMEM\w* .*(?:error|failed)|\bUCX +ERROR",  # libibverbs, NVSHMEM, UCX
)
"""Texts of COMMUNICATION. A rank that dies of something else breaks what joins the ranks, so these count only
where no other error came before them."""

PREFIXES = (
    r"^\[rank\d+\]: ?",  # torch.distributed's excepthook
    r"^(?:\[rank\d+\]:)?\[?E\d* ?[\d:.]* *\d* ?[\w/.]+\.(?:cpp|cc|cu|py):\d+\] ",  # glog
    r"^[\w.-]+:\d+:\d+ \[\d+\] ",  # NCCL: host, process, thread, device
    r"^  what\(\):  ",  # C++'s terminate
)

HARMLESS = (
    r"^(?:TRACE|DEBUG|INFO|WARN|WARNING)\b",  # Python's logging, uvicorn, NCCL without its prefix
    r"^(?:\[rank\d+\]:)?\[?[IW]\d{4} [\d:.]+ ",  # glog
    r"^(?:[\w.-]+:\d+:\d+ \[\d+\] )?NCCL INFO\b",  # NCCL
)

HOLLOW = (
    r"Connection (?:closed|reset) by peer|Broken pipe",  # sockets of a rank that is gone
    r"remote process (?:exited|has exited)|remote process exiting",  # NCCL, ncclRemoteError
    r"^(?:\w+\.)*(?:KeyboardInterrupt|SystemExit|CancelledError|EOFError)\b",  # Python: being stopped
    r"\bChildFailedError\b",  # torch.distributed.elastic
    r"Failed core proc\(s\)",  # vLLM, and what wraps it: v1/engine/utils.py
)

KILLED = r"': -9\b|exit ?code[:=]? -9\b|\bSIGKILL\b|signal: Killed"
"""What engines say of a process of theirs that was killed by signal 9."""

OOM_KILL = (
    r"(?:Out of memory|Memory cgroup out of memory): Killed process (\d+)",  # Linux, mm/oom_kill.c
    r"oom-kill:.*\bpid=(\d+)",  # Linux, mm/oom_kill.c
)
OOM_KILL_COUNTED = r"\boom_kill \+\d+"
"""A control group's counter of such kills, as the tuner's own reader writes it: it names no process."""

XID = r"NVRM: Xid \([^)]*\): (\d+)"
KERNEL_FAULTS = (
    r"fallen off the bus",  # NVIDIA's kernel module
    r"amdgpu .*(?:uncorrectable|poison)",  # amdgpu, RAS
    r"mce: \[Hardware Error\]|EDAC .*\bUE\b",  # Linux: machine checks, memory controllers
    r"mlx5_core .*(?:health compromised|fatal error)",  # the network's fabric
)
