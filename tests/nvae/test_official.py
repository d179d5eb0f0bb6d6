"""Parity with the published NVAE: its weights, inputs and recorded noise give its outputs, gradients and steps."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metrics.decisions import PosteriorSample, PriorSample
from metrics.elbo import VAEOutput, importance_bound, log_weight, terms
from metrics.likelihoods import DiscretizedLogisticMixture
from nvae import NVAE, NVAEObjective, official
from nvae.batch_norm import batch_norm_penalty, batch_norms
from nvae.config import CELL_OPS
from nvae.objective import kl_balance_alpha, kl_balance_coefficients, kl_coefficient
from nvae.spectral import SpectralRegulariser
from tests.nvae.published import ARGS, published_form, randomised

CASES = ("a_mnist", "b_celeba64", "c_celeba64_nf1", "d_bnelu")
TOLERANCE = 1e-5  # float32: the original differs from its float64 self by 6e-7


@dataclass
class Case:
    golden: dict[str, Any]
    model: NVAE  # pristine: tests copy it before they train it
    x: Tensor
    names: dict[str, str]  # ours -> published

    @property
    def noise(self) -> list[Tensor]:
        return list(self.golden["noise"])

    def fresh(self) -> NVAE:
        return copy.deepcopy(self.model)

    def crop(self, image: Tensor) -> Tensor:
        """Undo the 28 -> 32 padding of binary images."""
        return image[..., 2:30, 2:30] if self.golden["args"]["dataset"] == "mnist" else image


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, shared: Path) -> Case:
    golden = torch.load(shared / "golden" / "nvae" / f"{request.param}.pt", weights_only=True)
    model = official.load(golden["state_dict"], golden["args"])
    built = Case(golden, model, golden["x"], official.published_names(model))
    built.x = built.crop(golden["x"])
    return built


def close(actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    """Largest difference relative to the largest magnitude."""
    actual, expected = actual.detach().double(), expected.double()
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def unpack(packed: dict[str, Any]) -> dict[str, Tensor]:
    sizes = [int(torch.tensor(shape).prod()) for shape in packed["shapes"]]
    parts = packed["flat"].split(sizes)
    return {k: v.view(shape) for k, v, shape in zip(packed["names"], parts, packed["shapes"], strict=True)}


def stats(values: Tensor) -> Tensor:
    values = values.detach().double()
    return torch.stack([values.sum(), values.abs().sum(), (values**2).sum(), values.min(), values.max()])


def run(case: Case, mode: str) -> tuple[VAEOutput, Tensor]:
    """Output and raw parameters of the likelihood, uncropped."""
    model = case.fresh().train(mode == "train")
    raw: list[Tensor] = []
    model.output_conv.register_forward_hook(lambda module, args, output: raw.append(output))
    with torch.no_grad():
        return model(case.x, case.noise), raw[0]


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_forward(case: Case, mode: str) -> None:
    golden = case.golden[mode]
    output, raw = run(case, mode)
    stride = case.golden["logits_stride"]
    close(raw[:, :, ::stride, ::stride], golden["logits_strided"])
    close(stats(raw)[1:], golden["logits_stats"][1:])
    ours = terms(output, case.x)
    close(ours.kl, golden["kl_all"])
    close(ours.distortion, golden["recon_loss"])
    close(-ours.elbo, golden["neg_elbo"])
    close(log_weight(output, case.x), golden["log_iw"])
    close(sum((g.log_q().flatten(1).sum(1) for g in output.groups), torch.zeros(())), golden["log_q"])
    close(sum((g.log_p().flatten(1).sum(1) for g in output.groups), torch.zeros(())), golden["log_p"])
    for group, expected in zip(output.groups, golden["kl_diag"], strict=True):
        close(group.kl_per_channel(), expected)
    expected_map = case.crop(golden["log_prob_map"])
    torch.testing.assert_close(output.likelihood.log_prob_map(case.x), expected_map, rtol=2e-5, atol=2e-5)
    if case.model.spec.channels == 3:  # the padded border of MNIST's mean is never formed
        mean = golden["output_mean_strided"]
        step = case.model.spec.height // mean.shape[-1]
        close(output.likelihood.mean[:, :, ::step, ::step], mean)


def test_every_cell(case: Case) -> None:
    """If a forward pass differs, this test names the first cell that does."""
    recorded: dict[str, Tensor] = {}
    towers = {
        "preprocess": "pre_process",
        "encoder": "enc_tower",
        "decoder": "dec_tower",
        "postprocess": "post_process",
    }
    model = case.fresh()
    for ours, published in towers.items():
        for i, module in enumerate(getattr(model, ours)):

            def record(module: nn.Module, args: object, output: Tensor, name: str = f"{published}.{i}") -> None:
                recorded[name] = stats(output)

            module.register_forward_hook(record)
    with torch.no_grad():
        model(case.x, case.noise)
    golden = case.golden["eval_cell_stats"]
    compared = 0
    for name, expected in zip(golden["names"], golden["stats_sum_abs_sq_min_max"], strict=True):
        if name in recorded:
            assert torch.allclose(recorded[name][1:], expected[1:], rtol=TOLERANCE), name
            compared += 1
    assert compared == len(recorded)


def test_kl_balancing(case: Case) -> None:
    golden = case.golden["eval"]
    config = official.objective_config(case.golden["args"])
    coefficient = kl_coefficient(case.golden["kl_step"], case.golden["kl_total_steps"], config)
    assert coefficient == pytest.approx(float(golden["kl_coeff"]), rel=1e-9)
    alpha = kl_balance_alpha(case.golden["groups_per_scale"])
    close(alpha, golden["kl_balance_alpha"])
    factors = kl_balance_coefficients(golden["kl_all"].abs().mean(0), alpha)
    close(factors, golden["kl_balance_coeffs"])
    close(coefficient * (factors * golden["kl_all"]).sum(1), golden["balanced_kl"])


def test_importance_bound(case: Case) -> None:
    """Three draws in one top-down pass over repeated features."""
    golden = case.golden["iw"]
    draws = []
    for seed in golden["noise_seeds"]:
        generator = torch.Generator().manual_seed(seed)
        draws.append([torch.randn(eps.shape, generator=generator) for eps in case.noise])
    k = golden["K"]
    noise = [torch.stack(eps, dim=1).flatten(0, 1) for eps in zip(*draws, strict=True)]  # [B * K, ...]
    with torch.no_grad():
        features = case.model.bottom_up(case.x).repeat(k)
        output = case.model.top_down([PosteriorSample(eps) for eps in noise], features)
        x = case.x.repeat_interleave(k, dim=0)
        weights = log_weight(output, x).view(-1, k)
        close(weights, golden["log_iw"])
        close(-terms(output, x).elbo.view(-1, k), golden["neg_elbo"])
        close(importance_bound(weights), golden["log_p_iw"])


def test_prior_sample(case: Case) -> None:
    golden = case.golden["sample"]
    raw: list[Tensor] = []
    model = case.fresh()
    model.output_conv.register_forward_hook(lambda module, args, output: raw.append(output))
    images = model.sample(golden["num_samples"], golden["temperature"], golden["noise"])
    stride = raw[0].shape[-1] // golden["logits_strided"].shape[-1]
    close(raw[0][:, :, ::stride, ::stride], golden["logits_strided"])
    close(stats(raw[0])[1:], golden["logits_stats"][1:])
    if "pixel_sample_strided" not in golden:
        whole = torch.sigmoid(raw[0])  # MNIST: with its border
        close(whole[:, :, ::2, ::2], golden["output_mean_strided"])
        close(images, whole[:, :, 2:30, 2:30])
        return
    step = images.shape[-1] // golden["output_mean_strided"].shape[-1]
    close(images[:, :, ::step, ::step], golden["output_mean_strided"])
    decisions = [PriorSample(golden["temperature"], eps) for eps in golden["noise"]]
    with torch.no_grad():
        likelihood = model.top_down(decisions, num=golden["num_samples"]).likelihood
    assert isinstance(likelihood, DiscretizedLogisticMixture)
    generator = torch.Generator().manual_seed(5)
    u_component = torch.empty(likelihood.logits.shape).uniform_(1e-5, 1 - 1e-5, generator=generator)
    u_pixel = torch.empty(images.shape).uniform_(1e-5, 1 - 1e-5, generator=generator)
    drawn = likelihood.sample(1.0, noise=(u_component, u_pixel))
    close(drawn[:, :, ::step, ::step], golden["pixel_sample_strided"])


def regulariser(case: Case, model: NVAE) -> SpectralRegulariser:
    """The penalty with the recorded vectors, as after the long first call."""
    golden = case.golden["spectral"]
    ours = SpectralRegulariser(model, golden["num_power_iter"])
    state = {"started": torch.tensor(True)}
    for shape, order in golden["layer_order"].items():
        published = [case.names[f"{name}.weight"].removesuffix(".weight") for name in ours.layer_names[shape]]
        assert published == order
        state[f"u_{shape}"] = golden["u0"][shape]
    ours.load_state_dict(state)
    return ours


def test_spectral_and_batch_norm_penalties(case: Case) -> None:
    golden = case.golden["spectral"]
    ours = regulariser(case, case.model)
    assert sum(len(names) for names in ours.layer_names.values()) == golden["num_conv_layers"]
    losses = torch.stack([ours().detach() for _ in golden["loss_after_calls"]])
    close(losses, golden["loss_after_calls"])
    for shape, expected in golden["u_after"].items():
        close(getattr(ours, f"u_{shape}"), expected)
    assert len(batch_norms(case.model)) == case.golden["num_bn_layers"]
    close(batch_norm_penalty(case.model), case.golden["bn_loss"])


def test_fresh_power_iteration_finds_the_singular_values(case: Case) -> None:
    penalty = SpectralRegulariser(case.model, num_iterations=60)().detach()
    assert float(penalty) == pytest.approx(float(case.golden["spectral"]["exact_sum_of_sigma_max"]), rel=2e-3)


def test_running_statistics_after_one_forward(case: Case) -> None:
    expected = unpack(case.golden["train_bn_buffers"])
    model = case.fresh().train()
    with torch.no_grad():
        model(case.x, case.noise)
    buffers = model.state_dict()
    ours = {published: buffers[key] for key, published in case.names.items()}
    for name, value in expected.items():
        if name.endswith("running_var"):
            close(ours[name], value)
        else:  # a mean may be near zero: in units of the running standard deviation
            std = expected[name.replace("running_mean", "running_var")].sqrt()
            assert ((ours[name] - value) / std).abs().max() <= TOLERANCE, name


def train_loss(case: Case) -> tuple[NVAE, Tensor]:
    """The whole training loss, differentiated."""
    model, golden = case.fresh().train(), case.golden["train_loss"]
    config = official.objective_config(case.golden["args"])
    objective = NVAEObjective(config, model, case.golden["kl_total_steps"])
    objective.spectral.load_state_dict(regulariser(case, model).state_dict())
    with torch.no_grad():
        for _ in range(golden["spectral_calls_before"]):
            objective.spectral()
    loss = objective(model, case.x, case.golden["kl_step"], case.noise)
    close(loss.terms["spectral"], golden["norm_loss"])
    close(loss.terms["batch_norm"], golden["bn_loss"])
    loss.total.backward()
    return model, loss.total.detach()


def test_loss_gradients_and_one_step(case: Case) -> None:
    model, loss = train_loss(case)
    close(loss, case.golden["train_loss"]["loss"])
    golden = case.golden["grads"]
    ours = {case.names[name]: parameter for name, parameter in model.named_parameters()}
    assert set(ours) == set(golden["names"])
    largest = float(golden["norm"].max())
    small = unpack(golden["small"])
    norms = dict(zip(golden["names"], golden["norm"].tolist(), strict=True))
    for name, norm, total in zip(golden["names"], golden["norm"], golden["sum"], strict=True):
        grad = ours[name].grad
        assert grad is not None
        assert abs(float(grad.double().norm() - norm)) <= TOLERANCE * largest, name
        assert abs(float(grad.double().sum() - total)) <= TOLERANCE * largest * max(1.0, grad.numel() ** 0.5), name
        if name in small:
            assert float((grad - small[name]).double().norm()) <= TOLERANCE * largest, name

    golden = case.golden["adamax_step1"]
    optimiser = torch.optim.Adamax(
        model.parameters(),
        lr=golden["lr"],
        betas=golden["betas"],
        eps=golden["eps"],
        weight_decay=golden["weight_decay"],
    )
    optimiser.step()
    moved = {name: parameter.detach() for name, parameter in ours.items()}
    small = unpack(golden["small_params"])
    for name, expected in zip(golden["param_names"], golden["param_stats_sum_abs_sq_min_max"], strict=True):
        certain = norms[name] > 1e-5 * largest  # elsewhere the gradient is rounding, which Adamax magnifies
        allowed = 5e-5 if certain else 3e-3
        if name in small:
            assert float((moved[name] - small[name]).abs().max()) <= allowed, name
        if certain:
            actual = stats(moved[name])
            assert float((actual - expected)[3:].abs().max()) <= allowed, name
            assert float((actual - expected)[:2].abs().max()) <= allowed * moved[name].numel(), name


# Without golden data --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_nf", [0, 2])
@pytest.mark.parametrize(
    "arch",
    sorted(CELL_OPS),
)
def test_published_names_round_trip(arch: str, num_nf: int) -> None:
    args = {**ARGS, "arch_instance": arch, "num_nf": num_nf}
    model = randomised(args)
    again = official.load(published_form(model), args)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    for before, after in zip(model.encode(x), again.encode(x), strict=True):
        torch.testing.assert_close(before, after)
    assert all(bool(flag) for name, flag in again.state_dict().items() if name.endswith("initialised"))


@pytest.mark.parametrize("dataset", ["mnist", "celeba_64"])
def test_one_group_has_an_unused_initial_state(dataset: str) -> None:
    args = {**ARGS, "dataset": dataset, "num_latent_scales": 1, "num_groups_per_scale": 1, "num_nf": 1}
    model = randomised(args)
    state = published_form(model)
    state["prior_ftr0"] = torch.rand(16, 16, 16)
    assert {"stem_decoder.weight", "stem_decoder.bias", "nf_cells.0.cell2.mu.conv_0.bias"} <= set(state)
    again = official.load(state, args)
    x = torch.rand(2, model.spec.channels, model.spec.height, model.spec.width).round()
    torch.testing.assert_close(again.encode(x)[0], model.encode(x)[0])
    with pytest.raises(ValueError, match="one group with 8 encoder and 12 decoder channels"):
        official.load(state, {**args, "num_channels_dec": 12})


def test_binary_images_are_padded_to_32_whatever_the_stride() -> None:
    args = {**ARGS, "dataset": "omniglot", "num_latent_scales": 1}
    model = NVAE(official.model_config(args), official.image_spec(args))
    assert model.group_shapes[0] == (3, 16, 16)  # 28 / 2 would be 14
    assert model.sample(1).shape == (1, 1, 28, 28)


def test_legacy_is_about_the_edges_alone() -> None:
    args = {**ARGS, "num_x_bits": 5}
    assert official.model_config(args).likelihood_edges == "legacy"
    assert official.model_config(args, legacy=False).likelihood_edges == "exact"
    assert official.image_spec(args).num_bits == 5
    assert official.model_config({**args, "num_mixture_dec": 1}).likelihood == "normal"


def test_weights_of_another_architecture_are_named() -> None:
    state = published_form(randomised(ARGS))
    with pytest.raises(
        ValueError, match=r"missing \(pre_process\.0\._ops\.0\.bn\.bn\.weight.*unexpected \(pre_process"
    ):
        official.load(state, {**ARGS, "arch_instance": "res_bnelu"})
    with pytest.raises(ValueError, match=r"of another shape \(.*stem\.weight \(8, 3, 3, 3\) instead of \(6, 3, 3, 3\)"):
        official.load(state, {**ARGS, "num_channels_enc": 6})
    del state["stem.bias"]
    with pytest.raises(ValueError, match=r"1 missing \(stem\.bias\); give"):
        official.load(state, ARGS)


def test_older_and_wrapped_weights_are_read_as_the_published_code_reads_them(caplog: pytest.LogCaptureFixture) -> None:
    args = {**ARGS, "ada_groups": False, "min_groups_per_scale": 1}
    model = randomised(args)
    older = {name: value for name, value in args.items() if name not in ("ada_groups", "min_groups_per_scale")}
    state = {f"module.{key}": value for key, value in published_form(model).items()}
    state["module.total_ops"] = state["module.enc_tower.0.extra"] = torch.zeros(1)
    with caplog.at_level(logging.WARNING):
        again = official.load(state, older)
    assert all(name in caplog.text for name in ("2 tensors", "'total_ops'", "'enc_tower.0.extra'"))
    for key, value in model.state_dict().items():
        if not key.endswith("initialised"):
            torch.testing.assert_close(again.state_dict()[key], value)


def test_arguments_that_cannot_be_used_are_named(caplog: pytest.LogCaptureFixture) -> None:
    state = published_form(randomised(ARGS))
    with caplog.at_level(logging.WARNING):
        official.load(state, {**ARGS, "seed": 1, "frobnicate": 3, "epochs": 400})
    assert "frobnicate" in caplog.text
    assert "epochs" not in caplog.text
    with pytest.raises(ValueError, match="lack num_nf"):
        official.load(state, {k: v for k, v in ARGS.items() if k != "num_nf"})
    with pytest.raises(ValueError, match="res_mbconv9"):
        official.load(state, {**ARGS, "arch_instance": "res_mbconv9"})
    with pytest.raises(ValueError, match="stacked_mnist"):
        official.load(state, {**ARGS, "dataset": "stacked_mnist"})


def test_objective_of_published_arguments() -> None:
    args = {**ARGS, "weight_decay_norm": 0.01, "weight_decay_norm_init": 1.0, "weight_decay_norm_anneal": True}
    config = official.objective_config(args)
    assert (config.spectral_weight, config.spectral_weight_initial) == (0.01, 1.0)
    assert official.objective_config({**args, "weight_decay_norm_anneal": False}).spectral_weight_initial is None


def test_aliases_do_not_matter() -> None:
    model = randomised(ARGS)
    state = {k: v for k, v in published_form(model).items() if not k.endswith("weight_normalized")}
    again = official.load(state, ARGS)
    assert torch.equal(again.stem.weight, model.stem.weight)
    assert F.mse_loss(again.sample(1, noise=None), torch.zeros(1, 3, 32, 32)) > 0
