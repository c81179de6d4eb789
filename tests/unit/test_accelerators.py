"""The shipped constants: sound, sourced, and never those of another product than the one at hand."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from pydantic import ValidationError

from autotune.adapters.devices.accelerators import read_accelerators
from autotune.domain.hardware.accelerators import AcceleratorTable, Market

TABLE = read_accelerators()


@pytest.mark.parametrize(
    ("reported", "name", "all_in_kw"),
    [
        ("NVIDIA H100 80GB HBM3", "H100 SXM", 1.37),
        ("NVIDIA H200", "H200 SXM", 1.37),
        ("NVIDIA B200", "B200 SXM", 1.71),
        ("NVIDIA B300 SXM6 AC", "B300 SXM", 1.9),
        ("NVIDIA GB200", "GB200 NVL72", 1.87),
        ("NVIDIA GB300", "GB300 NVL72", 2.12),
        ("AMD Instinct MI300X", "MI300X", 1.39),
        ("AMD Instinct MI325X OAM", "MI325X", 1.69),
        ("AMD Instinct MI355X VF", "MI355X", 2.09),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX PRO 6000 Server Edition", 0.975),
        ("nvidia  h200 ", "H200 SXM", 1.37),
        ("h200 sxm", "H200 SXM", 1.37),
    ],
)
def test_a_device_finds_its_constants_by_the_name_its_driver_gives_or_their_own(
    reported: str, name: str, all_in_kw: float
) -> None:
    found = TABLE.find(reported)
    assert found is not None
    assert (found.name, found.all_in_kw) == (name, all_in_kw)


@pytest.mark.parametrize(
    "reported",
    [
        "NVIDIA GH200 480GB",
        "NVIDIA H200 NVL",
        "NVIDIA H20",
        "NVIDIA H100 PCIe",
        "NVIDIA H100 NVL",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA A100-SXM4-80GB",
        "AMD Instinct MI300A",
        "AMD Instinct MI350X",
        "NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
        "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
        "Intel(R) Xeon(R) Platinum 8480+",
        "",
    ],
)
def test_a_product_that_only_resembles_one_has_no_constants(reported: str) -> None:
    assert TABLE.find(reported) is None


def test_every_constant_is_plausible_and_says_where_it_is_from() -> None:
    assert len(TABLE.accelerators) == 10
    for accelerator in TABLE.accelerators:
        # A server adds to the accelerator's own watts, but not more than they are.
        assert accelerator.tdp_w < accelerator.all_in_kw * 1e3 < 2 * accelerator.tdp_w
        assert set(accelerator.usd_per_hour) == set(Market)
        owned = [accelerator.usd_per_hour[market].usd for market in (Market.HYPERSCALER, Market.NEOCLOUD)]
        assert owned == sorted(owned)
        sources = [accelerator.source, *(price.source for price in accelerator.usd_per_hour.values())]
        for source in sources:
            assert "github.com/" in source.where
            assert source.date > datetime.date(2026, 1, 1)


def test_a_name_that_two_claim_is_refused() -> None:
    twin = TABLE.accelerators[1].model_copy(update={"name": "twin", "reported_as": ("nvidia h200",)})
    entries = [entry.model_dump() for entry in (*TABLE.accelerators, twin)]
    with pytest.raises(ValidationError, match="more than one accelerator: nvidia h200"):
        AcceleratorTable.model_validate({"accelerators": entries})


def test_the_table_is_read_from_an_installation_too(tmp_path: Path) -> None:
    """As packaged data: from a zip file there is no path to open."""
    source = Path(__file__).parents[2] / "autotune"
    archive = tmp_path / "installed.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in [*source.rglob("*.py"), *source.rglob("*.yaml")]:
            packed.write(path, path.relative_to(source.parent))
    script = (
        "import autotune, autotune.adapters.devices.accelerators as c;"
        "print(autotune.__file__, len(c.read_accelerators().accelerators))"
    )
    environment = os.environ | {"PYTHONPATH": str(archive)}
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.stdout.split() == [f"{archive}/autotune/__init__.py", "10"], ran.stderr
