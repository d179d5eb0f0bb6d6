"""Explorer of a trained run: the user moves latents in a browser, and the model decodes them."""

from __future__ import annotations

import base64
import io
import json
import math
import threading
from collections.abc import Mapping
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from launch.results.pictures import leading_axes
from metrics import edits
from metrics.decisions import check_temperature
from metrics.model import VAE

PAGE = Path(__file__).with_name("explorer.html")
HOST = "127.0.0.1"  # other machines cannot reach it
MOST_LATENTS = 16  # sliders of a model with one group
LARGEST_REQUEST = 1 << 16  # bytes


class Explorer:
    """Decodes the images that the page requests.

    Args:
        model: in evaluation mode.
        images: images [N, C, H, W] in [0, 1] that can be encoded and edited.
        title: name of the model.
        axes: number of principal axes of each group.
    """

    def __init__(self, model: VAE, images: Tensor, title: str, axes: int = 4) -> None:
        self.model, self.images, self.title = model, images, title
        shapes = model.group_shapes
        each = min(axes, len(images) - 1, *(math.prod(shape) for shape in shapes))
        self.sliders = leading_axes(model, images, range(len(shapes)), each, MOST_LATENTS)
        self._codes = edits.coordinates(model, images)
        self._lock = threading.Lock()  # one answer at a time: each request has a thread

    def describe(self) -> dict[str, Any]:
        """Describe the sliders, groups and images for the page."""
        return {
            "title": self.title,
            "groups": len(self.model.group_shapes),
            "images": len(self.images),
            "sliders": [{"name": slider.name, "group": slider.axis.group} for slider in self.sliders],
        }

    def answer(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Decode one image.

        Args:
            asked: ``image`` and ``other``, indices; ``sample``, a seed, to start from a sample of the prior instead of
                the image; ``temperatures``, one for each group of a sample; ``swapped``, groups taken from the other image;
                ``values``, positions by index of the slider.

        Returns:
            ``decoded``, ``original`` and ``other`` as data URIs, and ``values``, the position of every slider.

        Raises:
            ValueError: a number is missing or out of range.
        """
        image, other = (_index(asked.get(name), len(self.images), name) for name in ("image", "other"))
        with self._lock, torch.no_grad():
            codes = self._start(asked, image)
            for group in asked.get("swapped", []):
                g = _index(group, len(codes), "group")
                codes[g] = self._codes[g][other : other + 1]
            for number, value in dict(asked.get("values", {})).items():
                axis = self.sliders[_index(int(number), len(self.sliders), "slider")].axis
                codes[axis.group] = axis.move(codes[axis.group], _finite(value))
            decoded = edits.decode_coordinates(self.model, codes)
            values = [float(s.axis.value(codes[s.axis.group])) for s in self.sliders]
        pictures = {"decoded": decoded[0], "original": self.images[image], "other": self.images[other]}
        return {name: _data_uri(picture) for name, picture in pictures.items()} | {"values": values}

    def _start(self, asked: Mapping[str, Any], image: int) -> list[Tensor]:
        """Coordinates of the image, or of a sample at the temperature of each group."""
        if asked.get("sample") is None:
            return [code[image : image + 1] for code in self._codes]
        temperatures = [_finite(t) for t in asked.get("temperatures", [1.0] * len(self._codes))]
        if len(temperatures) != len(self._codes):
            raise ValueError(
                f"there are {len(temperatures)} temperatures for {len(self._codes)} groups; give one for each"
            )
        for temperature in temperatures:
            check_temperature(temperature)
        source = torch.Generator().manual_seed(_index(asked["sample"], 2**31, "seed"))
        return [
            temperature * torch.randn(code[:1].shape, generator=source).to(code)
            for temperature, code in zip(temperatures, self._codes, strict=True)
        ]


def _index(value: Any, count: int, name: str) -> int:
    if not isinstance(value, int) or not 0 <= value < count:
        raise ValueError(f"{name} is {value!r}; give a whole number from 0 to {count - 1}")
    return value


def _finite(value: Any) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"a value is {value!r}; give a number")
    return float(value)


def _data_uri(image: Tensor) -> str:
    buffer = io.BytesIO()
    levels = (image.nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    shown = (levels if len(levels) in (1, 3) else levels[:1]).permute(1, 2, 0).squeeze(2)
    Image.fromarray(shown.numpy()).save(buffer, format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


class _Handler(BaseHTTPRequestHandler):
    """Serves the page and answers its requests."""

    def __init__(self, explorer: Explorer, *arguments: Any) -> None:
        self.explorer = explorer
        super().__init__(*arguments)

    def log_message(self, *_: Any) -> None:
        """Keep the terminal quiet."""

    def _send(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _send_json(self, status: int, content: Any) -> None:
        self._send(status, "application/json", json.dumps(content).encode())

    def _is_ours(self) -> bool:
        """Refuse a request with another Host header, such as that of a site whose name resolves to this machine."""
        port = self.connection.getsockname()[1]
        if self.headers.get("Host") in (f"{HOST}:{port}", f"localhost:{port}"):
            return True
        self._send_json(403, {"error": "open the address that the script printed"})
        return False

    def do_GET(self) -> None:
        """Send the page, or the description of the model."""
        if not self._is_ours():
            return
        if self.path == "/":
            self._send(200, "text/html", PAGE.read_bytes())
        elif self.path == "/model":
            self._send_json(200, self.explorer.describe())
        else:
            self._send_json(404, {"error": "there is no such page"})

    def do_POST(self) -> None:
        """Decode the requested image."""
        if not self._is_ours():
            return
        try:
            length = int(self.headers.get("Content-Length", 0))
            if not 0 < length <= LARGEST_REQUEST or self.headers.get_content_type() != "application/json":
                raise ValueError(f"the request has {length} bytes; send JSON")
            asked = json.loads(self.rfile.read(length))
            if not isinstance(asked, dict):
                raise ValueError("the request is not a JSON object; send one")
            answer = self.explorer.answer(asked)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            self._send_json(400, {"error": str(error)})
        else:
            self._send_json(200, answer)


def server(explorer: Explorer, port: int) -> ThreadingHTTPServer:
    """Listen on this machine only; ``port`` 0 takes a free one.

    Raises:
        ValueError: the port is taken or not allowed.
    """
    try:
        found = ThreadingHTTPServer((HOST, port), partial(_Handler, explorer))
    except (OSError, OverflowError) as error:
        raise ValueError(f"cannot listen on port {port} ({error}); give another --port, or 0 for any") from error
    found.daemon_threads = True
    return found
