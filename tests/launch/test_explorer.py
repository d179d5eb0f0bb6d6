"""The explorer: requests of its page are decoded, and only those from this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest
import torch

from datasets import ImageSpec
from flat_vae import FlatVAE, FlatVAEConfig
from launch.results import explorer
from launch.results.explorer import Explorer
from metrics import edits
from nvae import NVAE, NVAEConfig
from tests.nvae.small import SMALL

SPEC = ImageSpec(channels=1, height=16, width=16, num_bits=1)


@pytest.fixture(scope="module")
def hierarchy() -> Explorer:
    torch.manual_seed(0)
    return Explorer(NVAE(NVAEConfig(**SMALL), SPEC).eval(), torch.rand(6, 1, 16, 16).round(), "a model", axes=2)


def test_without_edits_an_image_is_its_reconstruction(hierarchy: Explorer) -> None:
    answer = hierarchy.answer({"image": 2, "other": 0})
    expected = explorer._data_uri(hierarchy.model.reconstruct(hierarchy.images[2:3])[0])
    assert answer["decoded"] == expected
    assert len(answer["values"]) == len(hierarchy.sliders) == 2 * len(hierarchy.model.group_shapes)


def test_a_slider_at_its_own_value_changes_nothing_and_elsewhere_is_a_traversal(hierarchy: Explorer) -> None:
    plain = hierarchy.answer({"image": 1, "other": 0})
    same = hierarchy.answer({"image": 1, "other": 0, "values": {"0": plain["values"][0]}})
    assert same["decoded"] == plain["decoded"]
    moved = hierarchy.answer({"image": 1, "other": 0, "values": {"0": 3.0}})
    x = edits.traverse(hierarchy.model, hierarchy.images[1:2], hierarchy.sliders[0].axis, [3.0])[0, 0]
    assert moved["decoded"] == explorer._data_uri(x)
    assert moved["values"][0] == pytest.approx(3.0, abs=1e-3)


def test_all_groups_of_the_other_image_are_that_image(hierarchy: Explorer) -> None:
    groups = list(range(len(hierarchy.model.group_shapes)))
    swapped = hierarchy.answer({"image": 0, "other": 4, "swapped": groups})
    assert swapped["decoded"] == hierarchy.answer({"image": 4, "other": 0})["decoded"]


def test_samples_have_a_seed_and_a_temperature_for_each_group(hierarchy: Explorer) -> None:
    asked: dict[str, Any] = {"image": 0, "other": 1, "sample": 3}
    first = hierarchy.answer(asked)["values"]
    assert hierarchy.answer(asked)["values"] == first
    assert hierarchy.answer({**asked, "sample": 4})["values"] != first
    groups = len(hierarchy.model.group_shapes)
    assert hierarchy.answer({**asked, "temperatures": [0.5] * groups})["values"] != first
    for wrong in ([0.0] * groups, [1.0] * (groups + 1)):
        with pytest.raises(ValueError, match="temperature"):
            hierarchy.answer({**asked, "temperatures": wrong})


def test_a_flat_model_has_its_latents_by_kl() -> None:
    torch.manual_seed(0)
    model = FlatVAE(FlatVAEConfig(latent_dim=3, conv_channels=4), SPEC).eval()
    flat = Explorer(model, torch.rand(4, 1, 16, 16).round(), "a model")
    kl = [float(slider.name.split("(")[1].split()[0]) for slider in flat.sliders]
    assert len(kl) == 3
    assert kl == sorted(kl, reverse=True)


@pytest.fixture
def port(hierarchy: Explorer) -> Iterator[int]:
    with explorer.server(hierarchy, 0) as served:
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield served.server_address[1]
        served.shutdown()
        thread.join()


def ask(port: int, method: str, path: str, body: str = "", **headers: str) -> tuple[int, bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, body, {"Content-Type": "application/json", **headers})
    reply = connection.getresponse()
    found = reply.status, reply.read()
    connection.close()
    return found


def test_the_page_is_served_and_foreign_or_broken_requests_are_refused(port: int) -> None:
    assert ask(port, "GET", "/")[0] == 200
    assert json.loads(ask(port, "GET", "/model")[1])["images"] == 6
    status, answer = ask(port, "POST", "/decode", json.dumps({"image": 0, "other": 1}))
    assert status == 200
    assert json.loads(answer)["decoded"].startswith("data:image/png;base64,")
    assert ask(port, "GET", "/", Host="elsewhere.example")[0] == 403
    assert ask(port, "GET", "/../config.json")[0] == 404
    for broken in (
        "",
        "[]",
        "{",
        "[" * 20_000,
        '{"image": 99, "other": 0}',
        '{"image": 0, "other": 0, "values": {"0": "NaN"}}',
    ):
        assert ask(port, "POST", "/decode", broken)[0] == 400


def test_the_page_asks_no_other_host() -> None:
    assert "http://" not in explorer.PAGE.read_text()
    assert "https://" not in explorer.PAGE.read_text()
