"""The truncated SVD: right where it says so, exact where the spectrum is flat, deterministic, and no one else's dice."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from holdfast import spectrum


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def matrix(kind: str, rows: int, columns: int, seed: int = 0) -> Tensor:
    """Singular values falling as i^-EXPONENT, or `spikes` over noise, `flat` noise, a `low` rank of 4."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "flat":
        return torch.randn(rows, columns, generator=generator)
    size = min(rows, columns)
    left = torch.linalg.qr(torch.randn(rows, size, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(columns, size, generator=generator)).Q
    if kind == "spikes":
        spikes = (left[:, :8] * torch.linspace(300, 150, 8)) @ right[:, :8].T
        return spikes + torch.randn(rows, columns, generator=generator)
    values = torch.arange(1, size + 1) ** -float(kind) if kind != "low" else (torch.arange(size) < 4).float()
    return (left * values) @ right.T


def product(top: spectrum.Top) -> Tensor:
    return (top.left * top.values) @ top.right.T


def truncated(difference: Tensor, rank: int) -> Tensor:
    left, values, right = torch.linalg.svd(difference.double(), full_matrices=False)
    return ((left[:, :rank] * values[:rank]) @ right[:rank]).float()


def relative(found: Tensor, true: Tensor) -> float:
    return (torch.linalg.vector_norm(found - true) / torch.linalg.vector_norm(true)).item()


@pytest.mark.parametrize("shape", [(320, 256), (256, 320)])
@pytest.mark.parametrize("kind", ["spikes", "low", "2", "1", "0.75", "0.5"])
def test_randomized_agrees_with_the_full_svd(kind: str, shape: tuple[int, int]) -> None:
    difference = matrix(kind, *shape)
    found = spectrum.top(difference, 6, seed=3)
    assert found.method == "randomized"
    assert relative(product(found), truncated(difference, 6)) < spectrum.TOLERANCE
    values = torch.linalg.svdvals(difference)
    assert torch.allclose(found.values, values[:6], rtol=1e-3, atol=1e-4 * values[0].item())
    assert found.following == pytest.approx(values[6].item(), rel=1e-2, abs=1e-4 * values[0].item())


@pytest.mark.parametrize("shape", [(320, 256), (256, 320)])
def test_flat_spectrum_falls_back_to_the_exact_way(shape: tuple[int, int]) -> None:
    difference = matrix("flat", *shape)
    found = spectrum.top(difference, 6, seed=0)
    assert found.method == "exact"
    assert relative(product(found), truncated(difference, 6)) < spectrum.TOLERANCE


def test_the_estimate_bounds_the_true_error() -> None:
    """Stopped early at a loose tolerance, the result is still better than what it was accepted for."""
    for kind in ("spikes", "1", "0.75", "0.5", "0.3", "flat"):
        difference, true = matrix(kind, 256, 256), truncated(matrix(kind, 256, 256), 6)
        for tolerance in (0.1, 0.01):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(spectrum, "TOLERANCE", tolerance)
                found = spectrum.top(difference, 6, seed=1)
            assert relative(product(found), true) < tolerance


def test_two_seeds_agree_where_the_residual_check_passes() -> None:
    difference = matrix("0.75", 256, 256)
    one, other = (product(spectrum.top(difference, 6, seed)) for seed in (1, 2))
    assert relative(one, other) < spectrum.TOLERANCE


def test_same_seed_same_bits_and_the_global_dice_stay() -> None:
    difference = matrix("1", 256, 300)
    before = torch.random.get_rng_state()
    one, other = (spectrum.top(difference, 6, seed=5) for _ in range(2))
    assert torch.equal(one.left, other.left) and torch.equal(one.values, other.values)
    assert torch.equal(before, torch.random.get_rng_state())


def test_left_projection_is_right_projection_is_the_truncated_svd() -> None:
    difference = matrix("1", 96, 64)
    top = spectrum.top(difference, 6, seed=0)
    scale = torch.linalg.matrix_norm(difference, 2).item()
    for projected in (top.left @ (top.left.T @ difference), (difference @ top.right) @ top.right.T):
        assert (projected - product(top)).abs().max().item() <= 5e-7 * max(scale, 1)


def test_a_cut_is_the_smaller_rank() -> None:
    difference = matrix("1", 96, 64)
    cut, direct = spectrum.top(difference, 16, seed=0).cut(3), spectrum.top(difference, 3, seed=0)
    assert torch.allclose(product(cut), product(direct), atol=1e-6)
    assert cut.following == pytest.approx(direct.following, rel=1e-5)


@pytest.mark.parametrize("shape", [(96, 64), (256, 320)])
@pytest.mark.parametrize("part", ["top", "full", "bottom", "random"])
def test_every_part_has_the_norm_of_the_rank_k_part(part: spectrum.Part, shape: tuple[int, int]) -> None:
    difference = matrix("0.75", *shape)
    expected = torch.linalg.vector_norm(truncated(difference, 6)).item()
    edit = spectrum.edit(difference.clone(), 6, part, seed=0)
    assert edit is not None
    added = torch.zeros(shape)
    edit.add_to(added, 1.0)
    assert torch.linalg.vector_norm(added).item() == pytest.approx(expected, rel=1e-3)
    in_rows = torch.zeros(shape)
    edit.add_to(in_rows[:10], 2.0, slice(0, 10))
    assert torch.allclose(in_rows[:10], 2 * added[:10], atol=1e-6) and not in_rows[10:].any()


def test_an_unscaled_random_subspace_would_be_small() -> None:
    """Without the scaling its norm is about √(k/m) ‖D‖: why the control has to be matched."""
    difference = matrix("flat", 1024, 256)
    basis = torch.linalg.qr(torch.randn(1024, 6, generator=torch.Generator().manual_seed(0))).Q
    share = torch.linalg.vector_norm(basis.T @ difference) / torch.linalg.vector_norm(difference)
    assert share.item() == pytest.approx((6 / 1024) ** 0.5, rel=0.2)
    edit = spectrum.edit(difference, 6, "random", seed=0)
    assert edit is not None and edit.left is not None and edit.left.shape == (1024, 6)


def test_bottom_of_a_low_rank_difference_is_no_part() -> None:
    assert spectrum.edit(matrix("low", 96, 64), 6, "bottom", seed=0) is None
    assert spectrum.edit(matrix("1", 96, 64), 64, "bottom", seed=0) is None


def test_rounding_to_bf16_blurs_the_difference_but_hardly_its_top() -> None:
    """The measured toy: a third of the entries vanish, D is wrong by 0.3, the rank-4 part by 0.04."""
    generator = torch.Generator().manual_seed(0)
    base = (torch.randn(1024, 1024, generator=generator) * 0.02).bfloat16().float()
    strong = torch.randn(1024, 4, generator=generator) @ torch.randn(4, 1024, generator=generator) * 0.5e-4
    true = strong + torch.randn(1024, 1024, generator=generator) * 3e-5
    stored = (base + true).bfloat16().float() - base
    assert (stored == 0).float().mean().item() == pytest.approx(0.35, rel=0.2)
    assert relative(stored, true) == pytest.approx(0.30, rel=0.2)
    top, exact = spectrum.top(stored, 4, seed=0), spectrum.top(true, 4, seed=0)
    assert relative(product(top), product(exact)) == pytest.approx(0.04, rel=0.2)
