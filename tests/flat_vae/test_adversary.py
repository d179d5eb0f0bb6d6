from __future__ import annotations

import copy
import io
import math
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from flat_vae import FlatVAE, FlatVAEConfig, adversary
from flat_vae.adversary import FactorVAE, permute_dims
from metrics import elbo
from tests.flat_vae.cases import BINARY, levels


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's 5 M parameters take seconds a step; what is tested here does not depend on the width."""
    monkeypatch.setattr(adversary, "HIDDEN_UNITS", 50)


def weights_of(objective: FactorVAE) -> Tensor:
    return torch.cat([p.detach().flatten() for p in objective.discriminator.parameters()])


def steps(objective: FactorVAE, model: FlatVAE, x: Tensor, first: int, last: int) -> None:
    for step in range(first, last):
        noise = [torch.randn(len(x), 4, generator=torch.Generator().manual_seed(10 * step + i)) for i in range(2)]
        objective(model, x, step, noise)
        objective.after_step(False)


def test_permuted_latents_keep_their_marginals_and_follow_the_noise() -> None:
    z, noise = torch.randn(50, 3), torch.randn(50, 3)
    permuted = permute_dims(z, noise)
    assert torch.equal(permuted.sort(0).values, z.sort(0).values)
    assert torch.equal(permuted, permute_dims(z, noise))
    order = noise[:, 1].argsort()
    assert torch.equal(permuted[:, 1], z[order, 1])
    assert not torch.equal(permuted, z[order])  # columns move apart


def test_the_loss_is_the_vaes_plus_the_density_ratio(model: FlatVAE, x: Tensor) -> None:
    objective = FactorVAE(model, gamma=3.0)
    noise = [torch.randn(6, 4), torch.randn(6, 4)]
    output = model(x, noise[:1])
    parts = elbo.terms(output, x)
    log_d = torch.log_softmax(objective.discriminator(output.groups[0].z), dim=1)
    expected = (parts.distortion + parts.rate + 3.0 * (log_d[:, 0] - log_d[:, 1])).mean()
    torch.testing.assert_close(objective(model, x, 0, noise).total, expected)


def test_each_is_trained_by_its_own_loss_alone(model: FlatVAE, x: Tensor) -> None:
    objective = FactorVAE(model, gamma=3.0)
    noise = [torch.randn(6, 4), torch.randn(6, 4)]
    loss = objective(model, x, 0, noise)
    of_discriminator = [p.grad.clone() for p in objective.discriminator.parameters()]  # type: ignore[union-attr]
    assert all(p.grad is None for p in model.parameters())
    loss.total.backward()
    for before, p in zip(of_discriminator, objective.discriminator.parameters(), strict=True):
        assert p.grad is not None
        assert torch.equal(before, p.grad)
    z = model(x, noise[:1]).groups[0].z.detach()
    real, fake = (torch.log_softmax(objective.discriminator(s), 1) for s in (z, permute_dims(z, noise[1])))
    expected = torch.autograd.grad(-0.5 * (real[:, 0].mean() + fake[:, 1].mean()), objective.discriminator[0].weight)[0]
    torch.testing.assert_close(of_discriminator[0], expected)


def test_it_learns_the_ratio_of_correlated_latents(model: FlatVAE) -> None:
    objective = FactorVAE(model, gamma=1.0)
    source = torch.Generator().manual_seed(0)

    def correlated() -> Tensor:
        first = torch.randn(64, 1, generator=source)
        return torch.cat([first, -first, torch.randn(64, 2, generator=source)], dim=1)

    untrained = float(objective.log_density_ratio(correlated()).mean().detach())
    objective.optimizer.param_groups[0]["lr"] = 1e-3
    for _ in range(200):
        z = correlated()
        loss = objective.discriminator_loss(z, permute_dims(z, torch.randn(64, 4, generator=source)))
        objective._accumulate(loss)
        objective.after_step(False)
    trained = float(objective.log_density_ratio(correlated()).mean().detach())
    assert trained > untrained + 0.5  # the truth is infinite
    assert float(loss.detach()) < math.log(2.0) - 0.1


def test_accumulated_batches_are_averaged(model: FlatVAE, x: Tensor) -> None:
    objective = FactorVAE(model, gamma=1.0)
    torch.nn.init.constant_(objective.discriminator[-1].weight, 0.01)  # type: ignore[arg-type]
    noise = [torch.randn(3, 4), torch.randn(3, 4)]
    objective(model, x[:3], 0, noise)
    once = [p.grad.clone() for p in objective.discriminator.parameters()]  # type: ignore[union-attr]
    objective(model, x[:3], 0, noise)
    stepped: list[Tensor] = []
    objective.optimizer.register_step_pre_hook(
        lambda optimizer, args, kwargs: stepped.extend(p.grad.clone() for p in optimizer.param_groups[0]["params"])
    )
    objective.after_step(False)
    for one, two in zip(once, stepped, strict=True):
        torch.testing.assert_close(one, two)


def test_a_skipped_step_leaves_it_as_it_was(model: FlatVAE, x: Tensor) -> None:
    objective = FactorVAE(model, gamma=1.0)
    before = weights_of(objective)
    objective(model, x, 0)
    objective.after_step(True)
    assert torch.equal(weights_of(objective), before)
    assert all(p.grad is None for p in objective.discriminator.parameters())
    model.eval()
    objective(model, x, 0)
    objective.after_step(False)  # nothing was learnt in evaluation mode
    assert torch.equal(weights_of(objective), before)


def test_it_resumes_exactly(model: FlatVAE, x: Tensor) -> None:
    whole = FactorVAE(model, gamma=1.0)
    torn = copy.deepcopy(whole.state_dict())
    steps(whole, model, x, 0, 4)
    first = FactorVAE(model, gamma=1.0)
    first.load_state_dict(torn)
    steps(first, model, x, 0, 2)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = FactorVAE(model, gamma=1.0)
    second.load_state_dict(torch.load(file, weights_only=True))
    steps(second, model, x, 2, 4)
    assert torch.equal(weights_of(second), weights_of(whole))


def _step_on_a_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    adversary.HIDDEN_UNITS = 50  # also in the other process
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(minutes=2))
    torch.manual_seed(0)
    model = FlatVAE(FlatVAEConfig(latent_dim=4, conv_channels=8), BINARY)
    objective = FactorVAE(model, gamma=1.0)
    source = torch.Generator().manual_seed(rank)
    objective(model, levels(BINARY, 6, seed=rank), 0, [torch.randn(6, 4, generator=source) for _ in range(2)])
    own = torch.cat([p.grad.flatten() for p in objective.discriminator.parameters()])  # type: ignore[union-attr]
    objective.after_step(False)
    torch.save({"gradient": own, "weights": weights_of(objective)}, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_step_on_the_mean_of_their_gradients(tmp_path: Path) -> None:
    other = mp.get_context("spawn").Process(target=_step_on_a_rank, args=(1, str(tmp_path)))
    other.start()
    _step_on_a_rank(0, str(tmp_path))
    other.join()
    assert other.exitcode == 0
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"])
    assert not torch.equal(ranks[0]["gradient"], ranks[1]["gradient"])
    torch.manual_seed(0)
    alone = FactorVAE(FlatVAE(FlatVAEConfig(latent_dim=4, conv_channels=8), BINARY), gamma=1.0)
    mean, start = (ranks[0]["gradient"] + ranks[1]["gradient"]) / 2, 0
    for parameter in alone.discriminator.parameters():
        parameter.grad = mean[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
    alone.optimizer.step()
    torch.testing.assert_close(weights_of(alone), ranks[0]["weights"])


def test_the_discriminator_is_the_papers(model: FlatVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    objective = FactorVAE(model, gamma=1.0)
    widths = [m.out_features for m in objective.discriminator if isinstance(m, torch.nn.Linear)]
    assert widths == [1000] * 6 + [2]
    group = objective.optimizer.param_groups[0]
    assert (group["lr"], group["betas"]) == (1e-4, (0.5, 0.9))
    assert "_extra_state" in objective.state_dict()


@pytest.mark.parametrize("amount", [0.0, 2.0])
def test_gamma_scales_the_total_correlation(amount: float, model: FlatVAE, x: Tensor) -> None:
    objective = FactorVAE(model, gamma=amount)
    loss = objective(model, x, 0, [torch.zeros(6, 4), torch.randn(6, 4)])
    expected = loss.terms["distortion"] + loss.terms["rate"] + amount * loss.terms["total_correlation"]
    torch.testing.assert_close(loss.total.detach(), expected)
