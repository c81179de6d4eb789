"""A roofline of one forward step: how long compute, memory and links make it, and how near engines get.

Every part of a layer takes the longer of its arithmetic and its memory traffic (Williams et al. 2009); the
parts, collectives between ranks, and fixed overheads of kernels and of scheduling follow one another.
``domain/search/forecast.py`` makes latency and throughput of a served load from such steps;
docs/design/roofline.md tells sources, and errors against published measurements.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log2

from autotune.domain.configs.config import EngineConfig, Pool
from autotune.domain.hardware.accelerators import Performance
from autotune.domain.models.checkpoint import Part
from autotune.domain.models.kv_layout import KvLayout, expected_layout
from autotune.domain.models.memory import split_of
from autotune.domain.models.model import LayerKind, ModelShape
from autotune.domain.models.precision import compute_bits, kv_bits, weight_bits
from autotune.domain.models.weights import Split, part_bytes, part_numbers

ACTIVATION_BYTES = 2
"""Of a number that travels between ranks after a layer: engines reduce in 16 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """What keeps engines from the roofline; one set for every model and accelerator.

    ``memory``, ``compute``, ``attention`` and ``link`` are reached shares of the peaks: of memory, of large
    matrix products, of attention's arithmetic, of links. ``layer_s`` is per layer, for the gaps between its
    kernels, ``experts_s`` in addition where it has experts; ``collective_s`` per collective and doubling of
    ranks, ``far_s`` in addition where a network links some; ``step_s`` per step, for scheduling and sampling.
    ``imbalance`` is the load of the busiest of ranks that hold whole experts, over the mean.
    ``acceptance`` is the chance that a drafted token is accepted after those before it were; ``drafted`` how
    many are drafted unless told.
    """

    memory: float = 0.77
    compute: float = 0.83
    attention: float = 0.48
    link: float = 0.3
    layer_s: float = 26e-6
    experts_s: float = 36e-6
    collective_s: float = 5e-6
    far_s: float = 60e-6
    step_s: float = 0.5e-3
    imbalance: float = 2.2
    acceptance: float = 0.58
    drafted: int = 2


EFFICIENCY = Efficiency()
"""Calibrated on InferenceX's table of 2026-07-20: ``bench/roofline.py --fit``, docs/design/roofline.md."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One forward step: its length, and how long its traffic and its arithmetic take at a device's peaks."""

    seconds: float
    memory_s: float
    compute_s: float


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of the model on one device: bytes to read, operations per token and its peak."""

    read_bytes: float
    flops_per_token: float
    peak_flops: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One engine of a pool, its ranks together, as a roofline sees it.

    ``replicas`` hold a share of the sequences each; ``stages`` are those of the pipeline, every one of which
    works on another share. Peaks, operations and bytes are those of one device.
    """

    chip: Performance
    efficiency: Efficiency
    parts: tuple[_Part, ...]
    experts: _Part | None
    experts_count: int
    experts_per_token: int
    split: Split
    replicas: int
    stages: int
    layers: int
    expert_layers: int
    hidden_size: int
    layout: KvLayout
    sparse_tokens: int
    index_token_bytes: float
    decode_flops: float
    prefill_flops: float
    window_flops: float
    attention_peak: float

    @property
    def devices(self) -> int:
        """Ranks of the worker."""
        return self.split.tensor * self.replicas * self.stages

    def decode(self, sequences: float, context: float, tokens_per_sequence: int = 1) -> Step:
        """A step that decodes so many sequences, all replicas together, each of so many tokens so far.

        With a pipeline it is the way of one token through all its stages, which work on a share of the
        sequences each: as many steps are under way as there are stages.
        """
        own = sequences / self.replicas / self.stages
        scores = own * tokens_per_sequence * self._scores(self.decode_flops, context)
        kept = own * self._read_bytes(context)
        return self._step(own * tokens_per_sequence, scores, kept)

    def prefill(self, tokens: float, context: float | None = None) -> Step:
        """A step that reads so many tokens of prompts on every replica; ``context`` is a prompt's length."""
        context = tokens if context is None else context
        scores = tokens * self._scores(self.prefill_flops, context / 2)
        return self._step(tokens, scores, tokens / max(context, 1.0) * self._read_bytes(context))

    def _scores(self, flops: float, context: float) -> float:
        """Operations of attention per token, on one device."""
        attended = min(context, self.sparse_tokens) if self.sparse_tokens else context
        window = min(context, self.layout.window) if self.layout.window else context
        return flops * attended + self.window_flops * window

    def _read_bytes(self, context: float) -> float:
        """Bytes of its cache that a sequence reads in a step; sparse attention reads its indexer's whole."""
        if not self.sparse_tokens or context <= self.sparse_tokens:
            return self.layout.sequence_bytes(context)
        unread = context - self.sparse_tokens
        return self.layout.sequence_bytes(context) - unread * (
            self.layout.token_bytes - self.index_token_bytes
        )

    def _step(self, tokens: float, score_flops: float, kept_bytes: float) -> Step:
        chip, reached = self.chip, self.efficiency
        memory_s = kept_bytes / (chip.memory_gb_s * 1e9)
        compute_s = score_flops / self.attention_peak
        seconds = max(memory_s / reached.memory, compute_s / reached.attention)
        for part, read_bytes, part_tokens in self._work(tokens):
            reading_s = read_bytes / (chip.memory_gb_s * 1e9)
            reckoning_s = part_tokens * part.flops_per_token / part.peak_flops
            memory_s, compute_s = memory_s + reading_s, compute_s + reckoning_s
            seconds += max(reading_s / reached.memory, reckoning_s / reached.compute)
        seconds += self.layers * (reached.layer_s + self._links_s(tokens)) + self._hops_s(tokens)
        seconds += self.expert_layers * reached.experts_s + reached.step_s
        seconds /= chip.pace
        return Step(seconds=seconds, memory_s=memory_s, compute_s=compute_s)

    def _work(self, tokens: float) -> list[tuple[_Part, float, float]]:
        """Parts with the bytes that are read and the tokens that are reckoned for."""
        work = [(part, part.read_bytes, tokens) for part in self.parts]
        if self.experts is not None:
            together = tokens * self.split.sharing_replicas
            missed = (1 - self.experts_per_token / self.experts_count) ** together
            busiest = self.efficiency.imbalance if self._sends_tokens else 1.0
            work.append((self.experts, self.experts.read_bytes * (1 - missed), together * busiest))
        return work

    @property
    def _sends_tokens(self) -> bool:
        """Whether tokens travel to ranks that hold whole experts."""
        return self.experts is not None and self.split.whole_experts and self.split.expert_ranks > 1

    def _links_s(self, tokens: float) -> float:
        """Seconds of one layer's collectives."""
        tensor, sharing = self.split.tensor, self.split.sharing_replicas
        vector = self.hidden_size * ACTIVATION_BYTES
        if sharing == 1:
            return 2 * self._collective_s(2 * tokens * vector, tensor)
        attention_s = self._collective_s(2 * tokens * vector, tensor)
        ranks = self.split.expert_ranks
        if self._sends_tokens:
            # There in 8 bits, back in 16; a rank sends what its own tokens need.
            sent = tokens / tensor * min(self.experts_per_token, ranks) * vector
            return attention_s + self._collective_s(sent / 2, ranks) + self._collective_s(sent, ranks)
        gathered = tokens * sharing * vector
        return attention_s + 2 * self._collective_s(gathered, ranks)

    def _collective_s(self, sent_bytes: float, ranks: int) -> float:
        """Seconds to exchange what a rank sends, all but its own share of it."""
        if ranks == 1:
            return 0.0
        near = min(ranks, self.chip.linked)
        inside = sent_bytes * (near - 1) / ranks / (self.chip.link_gb_s * 1e9)
        outside = sent_bytes * (ranks - near) / ranks / (self.chip.network_gb_s * 1e9)
        far_s = self.efficiency.far_s if ranks > near else 0.0
        return (inside + outside) / self.efficiency.link + self.efficiency.collective_s * log2(ranks) + far_s

    def _hops_s(self, tokens: float) -> float:
        """Seconds between the stages of a pipeline."""
        hop_bytes = tokens * self.hidden_size * ACTIVATION_BYTES
        far = self.devices > self.chip.linked
        bandwidth = (self.chip.network_gb_s if far else self.chip.link_gb_s) * 1e9
        return (self.stages - 1) * (
            hop_bytes / bandwidth / self.efficiency.link + self.efficiency.collective_s
        )


def worker(
    model: ModelShape,
    chip: Performance,
    config: EngineConfig,
    shape: EngineConfig | Pool,
    efficiency: Efficiency = EFFICIENCY,
) -> Worker:
    """One engine of a configuration: ``shape`` is one of its pools, or the configuration that has none."""
    # A token passes every stage, one after the other: nothing of its way is divided by their number.
    stages = shape.pipeline_parallel or 1
    split = replace(split_of(shape, model), pipeline=1)
    bits = weight_bits(model, quantization=config.quantization, dtype=config.dtype)
    cached = kv_bits(model, config.kv_cache_dtype, config.dtype)[1]
    held, numbers = part_bytes(model, split, bits), part_numbers(model)

    def part(name: Part, flops: float) -> _Part:
        peak = chip.peak_flops(compute_bits(model, config.quantization, bits.expected[name]))
        return _Part(held.get(name, 0.0), flops, peak)

    used = model.experts_per_token / model.experts if model.experts else 0.0
    decode, prefill, window = _attention_flops(model, split)
    return Worker(
        chip=chip,
        efficiency=efficiency,
        parts=tuple(
            part(name, 2 * numbers.get(name, 0) / split.tensor)
            for name in (Part.ATTENTION, Part.DENSE, Part.SHARED, Part.HEAD)
        ),
        experts=part(Part.EXPERTS, 2 * numbers[Part.EXPERTS] * used / split.expert_ranks)
        if numbers.get(Part.EXPERTS)
        else None,
        experts_count=model.experts,
        experts_per_token=model.experts_per_token,
        split=split,
        replicas=shape.data_parallel or 1,
        stages=stages,
        layers=model.layers,
        expert_layers=sum(model.with_experts),
        hidden_size=model.hidden_size,
        layout=expected_layout(model, split, cached),
        sparse_tokens=model.sparse_tokens,
        index_token_bytes=_index_bytes(model, split),
        decode_flops=decode,
        prefill_flops=prefill,
        window_flops=window,
        attention_peak=chip.peak_flops(bits.dtype_least),
    )


def _index_bytes(model: ModelShape, split: Split) -> float:
    """Bytes per token that sparse attention's indexer reads: one byte per number of its key (DSA)."""
    return model.layers * model.latent.index_dim / split.context if model.latent else 0.0


def _attention_flops(model: ModelShape, split: Split) -> tuple[float, float, float]:
    """Operations per token and attended token on one device: decoding, reading a prompt, and in windows.

    Two products, of scores and of values, two operations each. Latent attention decodes in the latent space
    and reads prompts with keys and values expanded (DeepSeek-V2, section 2.1).
    """
    full = sum(kind is LayerKind.FULL for kind in model.kinds) or model.layers * (not model.kinds)
    sliding = sum(kind is LayerKind.SLIDING for kind in model.kinds)
    heads = model.attention_heads / split.tensor / split.context
    if latent := model.latent:
        absorbed = 2 * heads * (latent.width + latent.kv_rank)
        expanded = 2 * heads * (latent.nope_dim + latent.rope_dim + latent.value_dim)
        return full * absorbed, full * expanded, 0.0
    flops = 4 * heads * model.head_dim
    return full * flops, full * flops, sliding * flops
