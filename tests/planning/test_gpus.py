"""GPUs: names of drivers, and the measured share of a data sheet's peak."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plugin.planning.gpus import GPUS, RESULTS, choose_measured, gpu_of_device, measurements


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100-80"),
        ("NVIDIA A100-PCIE-40GB", "A100-40"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA B200", "B200"),
        ("Tesla T4", None),
        ("cpu", None),
    ],
)
def test_a_driver_name_finds_its_gpu(device: str, name: str | None) -> None:
    found = gpu_of_device(device)
    assert (found and found.name) == name


def write(folder: Path, name: str, device: str, **cases: dict[str, object]) -> None:
    (folder / name).write_text(json.dumps({"device": device, "cases": cases}), encoding="utf-8")


def case(mfu: float | None, tflops: float, parameters: int) -> dict[str, object]:
    return {"mfu": mfu, "matmul_tflops": tflops, "parameters": parameters}


def test_measured_share_is_of_the_data_sheet_peak(tmp_path: Path) -> None:
    """0.5 of a product that reaches 791.6 TFLOP/s is 0.4 of 989.5."""
    write(
        tmp_path,
        "h100.json",
        "NVIDIA H100 80GB HBM3, 550.54",
        small_full_rows=case(0.5, 791.6, 10**8),
        large_full_rows=case(0.6, 791.6, 10**10),
        llada_lora_rows=case(0.7, 791.6, 10**8),
        broken_full_rows={"error": "out of memory"},
        cpu_full_rows=case(None, 0, 10**8),
    )
    (tmp_path / "cpu.json").write_text('{"shapes": {}}')
    found = measurements(tmp_path)
    assert [round(one.share, 9) for one in found] == [0.4, 0.48]
    small = choose_measured(GPUS["H100"], 2 * 10**8, found)
    assert small
    assert small.share == pytest.approx(0.4)
    assert "H100" in small.origin
    assert "h100.json" in small.origin


def test_a_measurement_of_the_gpu_itself_wins(tmp_path: Path) -> None:
    write(tmp_path, "a.json", "NVIDIA H100 80GB HBM3", x_full_rows=case(0.5, 800, 10**8))
    write(tmp_path, "b.json", "NVIDIA H200", x_full_rows=case(0.4, 800, 10**10))
    found = measurements(tmp_path)
    for name, other in (("H200", False), ("A100-80", True)):
        chosen = choose_measured(GPUS[name], 10**8, found)
        assert chosen
        assert chosen.gpu
        assert (chosen.gpu.name != name) == other


def test_nothing_measured_is_nothing(tmp_path: Path) -> None:
    assert measurements(tmp_path) == []
    assert choose_measured(GPUS["H100"], 10**8, []) is None


def test_the_results_of_this_repository_are_read() -> None:
    assert RESULTS.is_dir()
    assert all(0 < one.share < 1 for one in measurements())
