"""`hsd doctor`: what it says of machines that are not this one, and that it runs on this one."""

from __future__ import annotations

import pytest

from hsd.doctor import Card, Machine, _covered, advice, examine, report

RTX = Card("RTX 4090", (8, 9), 23e9, 24e9)
OLD = "The NVIDIA driver on your system is too old (found version 11040). Please update"


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        (Machine(read_gbps=20.0), "an 8B takes about 0.8 s per token, at the 20 GB/s"),
        (Machine(bf16=False), "no bf16 arithmetic"),
        (Machine(driver="535.1", build="cpu"), "built without CUDA"),
        (Machine(driver="470.1", build="cuda 13.0", complaint=OLD), "too old (found version 11040)"),
        (Machine(driver="does not answer", build="cuda 13.0"), "torch finds no GPU"),
        (Machine(cards=(Card("Apple", (0, 0), 8e9, 16e9),), build="mps", system="Darwin"), "unpacked when they are"),
        (Machine(cards=(Card("RX 7900", (11, 0), 20e9, 24e9),), build="rocm 7.1"), "bitsandbytes supports only some"),
        (
            Machine(cards=(Card("GTX 1080", (6, 1), 8e9, 8e9),), build="cuda 13.0", supported=("sm_75",)),
            "is not among",
        ),
        (Machine(cards=(Card("T4", (7, 5), 15e9, 16e9),), build="cuda 13.0", supported=("sm_75",)), "dtype: float16"),
        (Machine(cards=(Card("MX", (8, 6), 3e9, 4e9),), build="cuda 13.0"), "has 4.0 GB"),
        (Machine(cards=(Card("RTX 4090", (8, 9), 5e9, 24e9),), build="cuda 13.0"), "only 5.0 are free"),
        (Machine(cards=(RTX, RTX), build="cuda 13.0"), "2 GPUs"),
        (Machine(cards=(RTX,), wsl=True), "WSL2"),
        (Machine(cards=(RTX,), disk_free=1e9), "Less than 2 GB of disk"),
        (Machine(cards=(RTX,), missing=("bitsandbytes",)), "Not installed: bitsandbytes"),
    ],
)
def test_what_will_be_slow_or_will_not_work_is_said(machine, said):
    found = [sentence for sentence in advice(machine) if said in sentence]
    assert len(found) == 1, advice(machine)


def test_a_good_machine_gets_no_advice():
    assert advice(Machine(cards=(RTX,), build="cuda 13.0", supported=("sm_80", "sm_90"))) == []


@pytest.mark.parametrize(
    ("capability", "supported", "runs"),
    [
        ((8, 9), ("sm_80",), True),
        ((8, 0), ("sm_86",), False),
        ((12, 0), ("sm_90", "compute_90"), True),
        ((12, 0), ("sm_90",), False),
        ((9, 0), ("sm_90a",), True),
        ((6, 1), ("sm_75", "sm_80"), False),
    ],
)
def test_which_kernels_run_where(capability, supported, runs):
    assert _covered(capability, supported) is runs


def test_this_machine_is_reported(tmp_path):
    machine = examine(tmp_path)
    assert machine.cards or machine.read_gbps > 0
    found = report(tmp_path)
    assert found["facts"]["data folder"] == str(tmp_path) and found["facts"]["torch built for"]
    assert found["advice"] == advice(machine) or machine.read_gbps
