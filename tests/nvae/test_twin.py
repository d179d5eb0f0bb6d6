"""The model against a naive float64 twin, over all published arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metrics.elbo import terms
from nvae import NVAE, official
from nvae.config import CELL_OPS
from tests.nvae.published import ARGS, published_form, randomised
from tests.nvae.twin import ARCHS, Twin

TOLERANCE = 1e-5


def compare(model: NVAE, state: dict[str, Tensor], args: dict[str, Any], *, train: bool) -> None:
    spec = model.spec
    generator = torch.Generator().manual_seed(7)
    top = 2**spec.num_bits - 1
    x = torch.randint(0, top + 1, (3, spec.channels, spec.height, spec.width), generator=generator) / top
    x[:, :, 0, 0], x[:, :, 0, 1], x[:, :, 0, 2] = 0.0, 1.0, (top - 1) / top
    x = x.round() if spec.num_bits == 1 else x
    noise = [torch.randn(3, *shape, generator=generator) for shape in model.group_shapes]
    with torch.no_grad():
        output = model.train(train)(x, noise)
        ours = terms(output, x)
        twin = Twin(state, args, train=train)
        raw, expected = twin.forward(model.padding.pad(x), noise)
    for name, actual in (
        ("kl", ours.kl),
        ("log_q", sum((g.log_q().flatten(1).sum(1) for g in output.groups), torch.zeros(()))),
        ("log_p", sum((g.log_p().flatten(1).sum(1) for g in output.groups), torch.zeros(()))),
    ):
        worst = (actual.double() - expected[name]).abs().max() / expected[name].abs().max()
        assert float(worst) < TOLERANCE, name
    log_likelihood = twin.log_likelihood(model.padding.crop(raw), x)
    torch.testing.assert_close(ours.log_likelihood.double(), log_likelihood, rtol=TOLERANCE, atol=0.0)


@pytest.mark.parametrize("name", ["a_mnist", "b_celeba64", "c_celeba64_nf1", "d_bnelu"])
def test_the_twin_itself_against_golden_data(name: str, shared: Path) -> None:
    golden = torch.load(shared / "golden" / "nvae" / f"{name}.pt", weights_only=True)
    twin = Twin(golden["state_dict"], golden["args"])
    raw, found = twin.forward(golden["x"], golden["noise"])
    torch.testing.assert_close(found["kl"].float(), golden["eval"]["kl_all"], rtol=TOLERANCE, atol=1e-5)
    torch.testing.assert_close(found["log_q"].float(), golden["eval"]["log_q"], rtol=TOLERANCE, atol=0.0)
    x = golden["x"]
    if name == "a_mnist":
        raw, x = raw[:, :, 2:30, 2:30], x[:, :, 2:30, 2:30]
    torch.testing.assert_close(
        twin.log_likelihood(raw, x).float(), -golden["eval"]["recon_loss"], rtol=TOLERANCE, atol=0.0
    )


def test_tables_of_cells_agree() -> None:
    """The twin reads groups off the weights, so only this notices a wrong one."""
    ours = {name: (ops.preprocess, ops.encoder, ops.decoder, ops.postprocess) for name, ops in CELL_OPS.items()}
    assert ours == {name: tuple(tuple(part) for part in parts) for name, parts in ARCHS.items()}


@pytest.mark.parametrize("arch", sorted(ARCHS))
def test_every_cell_type(arch: str) -> None:
    args = {**ARGS, "arch_instance": arch}
    model = randomised(args)
    compare(official.load(published_form(model), args), published_form(model), args, train=False)
    # a loaded model is past its data-dependent initialisation, so training mode must not touch its weights
    compare(official.load(published_form(model), args), published_form(model), args, train=True)


@pytest.mark.parametrize(
    "change",
    [
        {"num_x_bits": 5, "num_nf": 2},
        {"num_mixture_dec": 1},
        {"num_latent_scales": 1, "num_groups_per_scale": 1},
        {"num_latent_scales": 1, "num_groups_per_scale": 1, "num_nf": 1, "dataset": "mnist"},
        {"num_latent_scales": 1, "num_groups_per_scale": 3, "num_nf": 1, "res_dist": False},
        {"dataset": "omniglot", "num_preprocess_blocks": 2, "num_postprocess_blocks": 2},
        {"ada_groups": False, "use_se": False, "num_cell_per_cond_dec": 2, "num_cell_per_cond_enc": 2},
        {"num_channels_enc": 6, "num_channels_dec": 10, "num_x_bits": 3},
        {"num_latent_scales": 3, "num_groups_per_scale": 5, "min_groups_per_scale": 2, "num_preprocess_cells": 1},
    ],
    ids=lambda change: ",".join(f"{k}={v}" for k, v in change.items()),
)
def test_every_argument(change: dict[str, Any]) -> None:
    args = {**ARGS, **change}
    model = randomised(args)
    state = published_form(model)
    compare(official.load(state, args), state, args, train=False)
    compare(official.load(state, args), state, args, train=True)
