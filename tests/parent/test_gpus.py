"""GPUs of a machine and of a job, on invented machines."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest

from plugin.base.errors import JobError
from plugin.config.params import Params
from plugin.parent.gpus import Gpu, list_gpus, resolve_gpus, visible_gpus

FOUR = [Gpu(n, f"GPU-{n}aaaaaaa-0000-1111-2222-333333333333") for n in range(4)]
GPU_0, GPU_2 = FOUR[0].uuid, FOUR[2].uuid
MIG_1, MIG_2 = (
    "MIG-11111111-aaaa-bbbb-cccc-dddddddddddd",
    "MIG-22222222-aaaa-bbbb-cccc-dddddddddddd",
)
SLICED = [
    Gpu(0, "GPU-0bbbbbbb-0000-1111-2222-333333333333", (MIG_1, MIG_2)),
    Gpu(1, "GPU-1bbbbbbb-0000-1111-2222-333333333333"),
]


class Library:
    """NVIDIA's library with invented GPUs; a handle is [GPU] or [GPU, number of a slice].

    GPU 2 has fallen off the bus; the first slices of GPU 0 have no instance, and only GPU 0 knows
    MIG.
    """

    class NVMLError(Exception):
        pass

    def __init__(self, driver: bool = True):
        self.driver, self.open = driver, 0

    def nvmlInit(self) -> None:
        if not self.driver:
            raise self.NVMLError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return 4

    def nvmlDeviceGetHandleByIndex(self, index: int) -> list[int]:
        if index == 2:
            raise self.NVMLError("GPU is lost")
        return [index]

    def nvmlDeviceGetUUID(self, handle: list[int]) -> str:
        kind = "GPU" if len(handle) == 1 else "MIG"
        return f"{kind}-{'-'.join(map(str, handle))}"

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: list[int]) -> int:
        if handle != [0]:
            raise self.NVMLError("Not Supported")
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: list[int], number: int) -> list[int]:
        if number not in (2, 5):
            raise self.NVMLError("Not Found")
        return [*handle, number]


def visible(chosen: str | None, gpus: Sequence[Gpu] = FOUR) -> list[str]:
    return visible_gpus({} if chosen is None else {"CUDA_VISIBLE_DEVICES": chosen}, lambda: gpus)


def resolve(seen: list[str], **values: object) -> tuple[str, ...]:
    return resolve_gpus(Params(**values), seen)


def refused(seen: list[str], **values: object) -> list[tuple[str, str]]:
    with pytest.raises(JobError) as caught:
        resolve(seen, **values)
    assert caught.value.code == 2
    return [(problem.field, str(problem)) for problem in caught.value.problems]


# --- what CUDA would show


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        (None, ["0", "1", "2", "3"]),
        ("", []),
        ("-1", []),
        ("none", []),
        ("2", ["2"]),
        ("3,1", ["3", "1"]),
        (" 0 , 2 ", ["0", "2"]),
        ("0,9,1", ["0"]),  # as in CUDA, the first unknown one ends the list
        ("7", []),
        ("0,-1,1", ["0"]),
        (f"{GPU_2},{GPU_0}", [GPU_2, GPU_0]),
        ("GPU-2aaa", ["GPU-2aaa"]),  # CUDA accepts the beginning of a UUID
    ],
)
def test_visible_gpus_are_those_of_cuda(chosen: str | None, names: list[str]) -> None:
    assert visible(chosen) == names


def test_a_name_this_machine_does_not_have_ends_the_list() -> None:
    assert visible(f"{GPU_0},GPU-99999999-0000-1111-2222-333333333333,1") == [GPU_0]
    assert visible("MIG-99999999-aaaa-bbbb-cccc-dddddddddddd", SLICED) == []


def test_a_gpu_with_slices_is_reached_through_them_alone() -> None:
    assert visible(None, SLICED) == [MIG_1, MIG_2, "1"]
    assert visible(MIG_2, SLICED) == [MIG_2]


def test_a_machine_without_a_gpu_shows_none() -> None:
    assert visible(None, []) == []
    assert visible("0", []) == []
    assert visible(GPU_0, []) == []


def test_the_library_lists_gpus_and_their_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    monkeypatch.setitem(sys.modules, "pynvml", library)
    gpus = list_gpus()
    assert gpus == [Gpu(0, "GPU-0", ("MIG-0-2", "MIG-0-5")), Gpu(1, "GPU-1"), Gpu(3, "GPU-3")]
    assert visible(None, gpus) == ["MIG-0-2", "MIG-0-5", "1", "3"]
    assert library.open == 0


def test_a_machine_without_a_driver_has_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Library(driver=False))
    assert list_gpus() == []
    assert visible_gpus({}, list_gpus) == []


def test_a_machine_without_the_library_has_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real package, without the driver's shared library."""
    import pynvml

    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "CDLL", missing)
    assert list_gpus() == []


def test_an_empty_choice_asks_no_library() -> None:
    def fails() -> list[Gpu]:
        raise AssertionError

    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}, fails) == []


# --- the GPUs of a job


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({}, ("0", "1", "2", "3")),
        ({"train_device": "cuda"}, ("0", "1", "2", "3")),
        ({"train_device": "cpu"}, ()),
        ({"gpu_ids": "0,2"}, ("0", "2")),
        ({"gpu_ids": "3 , 0"}, ("3", "0")),
        ({"gpu_ids": "1", "train_device": "cuda"}, ("1",)),
    ],
)
def test_gpus_of_a_job_on_a_machine_with_four(
    values: dict[str, object], names: tuple[str, ...]
) -> None:
    assert resolve(["0", "1", "2", "3"], **values) == names


def test_positions_count_the_visible_gpus_as_torch_does() -> None:
    assert resolve(["3", "1"], gpu_ids="0") == ("3",)
    assert resolve([GPU_2, GPU_0], gpu_ids="1,0") == (GPU_0, GPU_2)
    assert refused(["3", "1"], gpu_ids="3")[0][0] == "gpu_ids"


def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused() -> None:
    assert resolve([]) == ()
    ((field, text),) = refused([], train_device="cuda")
    assert field == "train_device"
    assert "none is visible" in text


@pytest.mark.parametrize(
    ("seen", "ids", "words"),
    [
        ([], "0", "0; this machine has no GPU"),
        (["0"], "1", "1; this machine has GPU 0"),
        (["0", "1", "2", "3"], "4", "4; this machine has GPUs 0-3"),
        (["0", "1"], "0,5,7", "5, 7; this machine has GPUs 0-1"),
    ],
)
def test_an_absent_gpu_is_named_with_what_is_there(seen: list[str], ids: str, words: str) -> None:
    ((field, text),) = refused(seen, gpu_ids=ids)
    assert field == "gpu_ids"
    assert words in text


def test_duplicates_and_absent_ids_are_reported_together() -> None:
    problems = refused(["0", "1"], gpu_ids="0,0,9")
    assert [field for field, _ in problems] == ["gpu_ids", "gpu_ids"]
    assert "9;" in problems[0][1]
    assert "0 more than once" in problems[1][1]


def test_ids_on_a_cpu_contradict_it() -> None:
    assert [field for field, _ in refused([], train_device="cpu", gpu_ids="0")] == ["gpu_ids"]


def test_slices_do_not_train_together() -> None:
    assert resolve([MIG_1, MIG_2]) == (MIG_1,)
    assert resolve([MIG_1, MIG_2], gpu_ids="1") == (MIG_2,)
    assert [field for field, _ in refused([MIG_1, MIG_2], gpu_ids="0,1")] == ["gpu_ids"]
