"""8-bit AdamW: bfloat16 weights move by the right amount on average; its state can be restored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from plugin.training.optimizer import make_optimizer, optimizer_tensors, restore_optimizer

SIDE = 256  # large enough for 8-bit states


class Weights(torch.nn.Module):
    def __init__(self, value: float, dtype: torch.dtype):
        super().__init__()
        self.wide = torch.nn.Parameter(torch.full((SIDE, SIDE), value, dtype=dtype))
        self.narrow = torch.nn.Parameter(torch.full((8,), value, dtype=dtype))


def step(module: Weights, optimizer: torch.optim.Optimizer, slope: float = 1.0) -> None:
    """Make an update along a constant gradient: Adam's is the learning rate for any slope."""
    for weight in module.parameters():
        weight.grad = torch.full_like(weight, slope)
    optimizer.step()
    optimizer.zero_grad()


def one_step(
    kind: str, rate: float, dtype: torch.dtype = torch.bfloat16, seed: int = 1
) -> torch.Tensor:
    module = Weights(1.5, dtype)
    step(module, make_optimizer(module, kind=kind, learning_rate=rate, weight_decay=0.0, seed=seed))
    assert {weight.dtype for weight in module.parameters()} == {dtype}
    return module.wide.detach().float()


def test_tiny_bfloat16_update_moves_the_right_share() -> None:
    """The next bfloat16 above 1.5 is 2^-7 away.

    An update of 1.5e-5 (1e-5 relative) must therefore move 0.192 % of the weights that far.
    """
    assert (one_step("adamw", 1.5e-5) == 1.5).all(), "rounded to nearest, every one of them is lost"
    moved = one_step("adamw_8bit", 1.5e-5)
    assert set(moved.unique().tolist()) == {1.5, 1.5 - 2**-7}
    share = 1.5e-5 * 2**7
    count = SIDE * SIDE
    assert (moved != 1.5).sum().item() == pytest.approx(
        share * count, abs=4 * (share * count) ** 0.5
    )


def test_large_bfloat16_update_is_right_on_average() -> None:
    moved = one_step("adamw_8bit", 1e-2)
    assert moved.mean().item() == pytest.approx(1.49, abs=2e-4)
    assert len(moved.unique()) == 2, "up or down to a neighbour, never further"


def test_float32_weights_are_updated_exactly() -> None:
    torch.testing.assert_close(
        one_step("adamw_8bit", 1e-3, torch.float32),
        torch.full((SIDE, SIDE), 1.499),
        rtol=1e-6,
        atol=0,
    )


def test_stochastic_rounding_is_seeded_by_step() -> None:
    assert torch.equal(one_step("adamw_8bit", 1e-3), one_step("adamw_8bit", 1e-3))
    assert not torch.equal(one_step("adamw_8bit", 1e-3), one_step("adamw_8bit", 1e-3, seed=2))
    module = Weights(1.5, torch.bfloat16)
    optimizer = make_optimizer(
        module, kind="adamw_8bit", learning_rate=1e-4, weight_decay=0.0, seed=1
    )
    moved = []
    for _ in range(3):
        before = module.wide.detach().clone()
        step(module, optimizer)
        moved.append(module.wide.detach() != before)
    # Each step moves 1.28 % of 65536 weights, 839; two steps move the same 11 by chance, and all
    # 839 with the same noise.
    assert all(mask.sum().item() == pytest.approx(839, abs=120) for mask in moved)
    assert (moved[0] & moved[1]).sum() < 40
    assert (moved[1] & moved[2]).sum() < 40


def test_weight_decay_applies_to_matrices_only() -> None:
    for kind in ("adamw", "adamw_8bit"):
        module = Weights(1.5, torch.float32)
        step(
            module,
            make_optimizer(module, kind=kind, learning_rate=0.1, weight_decay=0.5, seed=1),
            slope=1e-3,
        )
        assert module.wide[0, 0].item() == pytest.approx(1.5 * (1 - 0.1 * 0.5) - 0.1, rel=1e-3)
        assert module.narrow[0].item() == pytest.approx(1.4, rel=1e-3)


def test_frozen_weights_have_no_state() -> None:
    module = Weights(1.5, torch.float32)
    module.wide.requires_grad_(False)
    optimizer = make_optimizer(module, kind="adamw", learning_rate=0.1, weight_decay=0.0, seed=1)
    assert [weight for group in optimizer.param_groups for weight in group["params"]] == [
        module.narrow
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit"])
def test_restored_optimizer_continues_bit_by_bit(
    kind: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    straight = Weights(1.5, dtype)
    optimizer = make_optimizer(straight, kind=kind, learning_rate=1e-2, weight_decay=0.1, seed=1)
    for slope in (1.0, -0.3):
        step(straight, optimizer, slope)
    save_file(optimizer_tensors(optimizer), tmp_path / "optimizer.safetensors")
    again = Weights(0.0, dtype)
    again.load_state_dict(straight.state_dict())
    fresh = make_optimizer(again, kind=kind, learning_rate=1e-2, weight_decay=0.1, seed=1)
    restore_optimizer(fresh, load_file(tmp_path / "optimizer.safetensors"))
    for slope in (0.7, -1.0, 0.2):
        step(straight, optimizer, slope)
        step(again, fresh, slope)
    assert torch.equal(straight.wide, again.wide)
    assert torch.equal(straight.narrow, again.narrow)


def test_states_of_large_weights_are_8_bit() -> None:
    module = Weights(1.5, torch.bfloat16)
    optimizer = make_optimizer(
        module, kind="adamw_8bit", learning_rate=1e-2, weight_decay=0.0, seed=1
    )
    step(module, optimizer)
    sizes = [
        tensor.numel() * tensor.element_size()
        for tensor in optimizer_tensors(optimizer).values()
        if tensor.numel() == SIDE**2
    ]
    assert sizes == [SIDE**2] * 2
