"""One launch of a real vLLM: started, asked, loaded open and closed loop, metered, ended."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import pytest
from real_engine import launch, tiny_study

from autotune.domain.level import Level
from autotune.domain.power import PowerBasis
from autotune.domain.scoring import SlaVerdict, score_at


@pytest.mark.engine
def test_a_real_engine_is_launched_measured_and_ended(tmp_path: Path) -> None:
    study = tiny_study(tmp_path)
    closed, open_loop = Level("chat", concurrency=8), Level("chat", rate_rps=4.0)
    record = launch(tmp_path, study, {"max_num_seqs": 16}, closed, open_loop)

    assert record.failure is None
    assert "vllm serve" in record.command
    assert [m.level for m in record.curve] == [closed, open_loop]
    for measured in record.curve:
        requests = measured.requests.take(np.flatnonzero(measured.due_in_window))
        assert len(requests) > 0
        assert requests.ok.all()
        assert (requests.output_tokens == 32).all()
        assert (requests.prompt_tokens == 64).all()
        # One token to a chunk: what the server counts is what was timed.
        assert (requests.chunks == 32).all()
        assert (np.diff(requests.chunk_s)[np.diff(requests.chunk_owner) == 0] >= 0).all()
        assert not measured.health.was_limit
        counted = measured.counters.gained("generation_tokens_total", measured.window)
        assert counted == pytest.approx(measured.throughput_tok_per_s * measured.window.length_s, rel=0.2)
        # No prompt shares a prefix with another, so no cache can flatter the figures.
        assert measured.counters.prefix_hit_rate(measured.window) == 0
    assert record.before is not None
    assert record.before.idle_power_w is not None

    score = score_at(record.curve, study.slas[0], "chat", 4.0)
    assert score is not None
    assert score.verdict is not SlaVerdict.MISSED
    assert score.power_basis is PowerBasis.ESTIMATED
    assert score.mean_power_w > 0
    # What was offered is what came: 4 requests of 32 tokens a second, as Poisson has it.
    assert 0.4 < score.goodput_tok_per_s / (4.0 * 32) < 1.9
    assert not [
        p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or ())
    ]
