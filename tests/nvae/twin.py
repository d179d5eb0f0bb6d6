"""A second, naive NVAE for tests: float64, no modules, straight from published keys and arguments, one operation a line.

It shares no code with the package. It is itself checked against golden data, and then serves for the cases that no
golden data covers: other cells, several flows, the Normal likelihood, one group.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SWISH, SWISH5, ELU_BN, ELU = "res_bnswish", "res_bnswish5", "res_bnelu", "res_elu"
E6K5, E3K5 = "mconv_e6k5g0", "mconv_e3k5g0"
# arch -> operations of pre-processing, encoder, decoder, post-processing
ARCHS: dict[str, tuple[list[str], list[str], list[str], list[str]]] = {
    "res_mbconv": ([SWISH] * 2, [SWISH] * 2, [E6K5], [E3K5]),
    "res_bnswish": ([SWISH] * 2, [SWISH] * 2, [SWISH] * 2, [SWISH] * 2),
    "res_bnelu": ([ELU_BN] * 2, [ELU_BN] * 2, [ELU_BN] * 2, [ELU_BN] * 2),
    "res_elu": ([ELU] * 2, [ELU] * 2, [ELU] * 2, [ELU] * 2),
    "mbconv_sep": ([E3K5], [E6K5], [E6K5], [E3K5]),
    "mbconv_sep11": ([E3K5], ["mconv_e6k11g0"], ["mconv_e6k11g0"], [E3K5]),
    "mbconv_den": (["mconv_e3k5g8"], [E6K5], [E6K5], ["mconv_e3k5g8"]),
    "mbconv_res": ([E3K5], [E6K5], [SWISH] * 2, [SWISH] * 2),
    "res35_mbconv": ([SWISH, SWISH5], [SWISH, SWISH5], [E6K5], [E3K5]),
    "res53_mbconv": ([SWISH5, SWISH], [SWISH5, SWISH], [E6K5], [E3K5]),
    "res55_mbconv": ([SWISH5, SWISH5], [SWISH5, SWISH5], [E6K5], [E3K5]),
}


def swish(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def elu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.exp(x.clamp(max=0)) - 1)


def double_nearest(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def double_bilinear(x: Tensor) -> Tensor:
    """Corners aligned, as a product of interpolation matrices."""

    def matrix(n: int) -> Tensor:
        rows = torch.zeros(2 * n, n, dtype=x.dtype)
        for i in range(2 * n):
            at = i * (n - 1) / (2 * n - 1)
            low = min(int(at), n - 1)
            rows[i, low] += 1 - (at - low)
            rows[i, min(low + 1, n - 1)] += at - low
        return rows

    return torch.einsum("ih,bchw,jw->bcij", matrix(x.shape[2]), x, matrix(x.shape[3]))


def normal(raw_mean: Tensor, raw_log_std: Tensor) -> tuple[Tensor, Tensor]:
    return 5 * torch.tanh(raw_mean / 5), torch.exp(5 * torch.tanh(raw_log_std / 5)) + 0.01


def log_normal(z: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return -((z - mean) ** 2) / (2 * std**2) - torch.log(std) - 0.5 * math.log(2 * math.pi)


class Twin:
    def __init__(self, state: dict[str, Tensor], args: dict[str, Any], *, train: bool = False) -> None:
        self.p = {k: v.double() for k, v in state.items()}
        self.args, self.train = args, train
        self.pre, self.enc, self.dec, self.post = ARCHS[args["arch_instance"]]
        count, self.groups = args["num_groups_per_scale"], []
        for _ in range(args["num_latent_scales"]):
            self.groups.append(count)
            count = max(args["min_groups_per_scale"], count // 2) if args["ada_groups"] else count

    def conv(self, x: Tensor, key: str, mask: Tensor | None = None, **options: Any) -> Tensor:
        w = self.p[f"{key}.weight"] if mask is None else self.p[f"{key}.weight"] * mask
        if f"{key}.log_weight_norm" in self.p:
            length = torch.sqrt((w**2).sum((1, 2, 3), keepdim=True))
            w = torch.exp(self.p[f"{key}.log_weight_norm"]) * w / (length + 1e-5)
        dilation = options.get("dilation", 1)
        return F.conv2d(x, w, self.p.get(f"{key}.bias"), padding=dilation * (w.shape[-1] // 2), **options)

    def norm(self, x: Tensor, key: str) -> Tensor:
        mean, var = self.p[f"{key}.running_mean"], self.p[f"{key}.running_var"]
        if self.train:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        scale = self.p[f"{key}.weight"] / torch.sqrt(var + 1e-5)
        return (x - mean[:, None, None]) * scale[:, None, None] + self.p[f"{key}.bias"][:, None, None]

    def residual_op(self, x: Tensor, key: str, name: str, resize: str) -> Tensor:
        if name == ELU:
            x = elu(x)
        elif name == ELU_BN:
            x = elu(self.norm(x, f"{key}.bn.bn"))
        else:
            x = swish(self.norm(x, f"{key}.bn_act"))
        x = double_nearest(x) if resize == "up" else x
        return self.conv(x, f"{key}.conv_0", stride=2 if resize == "down" else 1, dilation=2 if name == SWISH5 else 1)

    def inverted_op(self, x: Tensor, key: str, resize: str) -> Tensor:
        first = 0
        if resize == "up":
            x, first = double_nearest(x), 1
        names = [f"{key}.conv.{first + i}" for i in range(5)]
        x = self.norm(x, f"{names[0]}.bn")
        x = swish(self.norm(self.conv(x, f"{names[1]}.conv.0"), f"{names[1]}.conv.1"))
        groups = x.shape[1] // self.p[f"{names[2]}.conv.0.weight"].shape[1]
        x = self.conv(x, f"{names[2]}.conv.0", groups=groups, stride=2 if resize == "down" else 1)
        x = swish(self.norm(x, f"{names[2]}.conv.1"))
        return self.norm(self.conv(x, names[3]), f"{names[4]}.bn")

    def cell(self, x: Tensor, key: str, ops: list[str], resize: str = "") -> Tensor:
        skip = x
        if resize == "down":
            shifted = [swish(x)[:, :, i::2, j::2] for i, j in ((0, 0), (1, 1), (0, 1), (1, 0))]
            skip = torch.cat([self.conv(s, f"{key}.skip.conv_{i + 1}") for i, s in enumerate(shifted)], 1)
        elif resize == "up":
            skip = self.conv(double_bilinear(x), f"{key}.skip.1")
        for i, name in enumerate(ops):
            where = resize if i == 0 else ""
            op = f"{key}._ops.{i}"
            x = self.inverted_op(x, op, where) if "mconv" in name else self.residual_op(x, op, name, where)
        if self.args["use_se"]:
            hidden = x.mean((2, 3)) @ self.p[f"{key}.se.se.0.weight"].T + self.p[f"{key}.se.se.0.bias"]
            gate = hidden.clamp(min=0) @ self.p[f"{key}.se.se.2.weight"].T + self.p[f"{key}.se.se.2.bias"]
            x = x / (1 + torch.exp(-gate))[:, :, None, None]
        return skip + 0.1 * x

    def flow(self, z: Tensor, key: str, mirrored: bool) -> Tensor:
        c = z.shape[1]

        def mask(c_out: int, c_in: int, k: int, see_self: bool) -> Tensor:
            m = torch.zeros(c_out, c_in, k, k, dtype=z.dtype)
            for o in range(c_out):
                for i in range(c_in):
                    mine = o * c // c_out
                    theirs = mine if c_in == 1 else i * c // c_in
                    for row in range(k):
                        for column in range(k):
                            place = (row - k // 2, column - k // 2)
                            earlier = theirs < mine or (see_self and theirs == mine)
                            m[o, i, row, column] = place < (0, 0) or (place == (0, 0) and earlier)
            return torch.rot90(m, 2, (2, 3)) if mirrored else m

        h = elu(self.conv(z, f"{key}.conv.convz.0", mask(6 * c, c, 3, False)))
        h = elu(elu(self.conv(h, f"{key}.conv.convz.2", mask(6 * c, 1, 5, True), groups=6 * c)))
        return z - self.conv(h, f"{key}.mu.conv_0", mask(c, 6 * c, 1, True))

    def bottom_up(self, x: Tensor) -> tuple[Tensor, list[tuple[int, Tensor]]]:
        x = self.conv(2 * x - 1, "stem")
        n = 0
        for _ in range(self.args["num_preprocess_blocks"]):
            for i in range(self.args["num_preprocess_cells"]):
                last = i == self.args["num_preprocess_cells"] - 1
                x = self.cell(x, f"pre_process.{n}", self.pre, "down" if last else "")
                n += 1
        seen: list[tuple[int, Tensor]] = []
        n, left = 0, sum(self.groups)
        for scale, count in enumerate(self.groups if sum(self.groups) > 1 else []):
            for _ in range(count):
                for _ in range(self.args["num_cell_per_cond_enc"]):
                    x = self.cell(x, f"enc_tower.{n}", self.enc)
                    n += 1
                left -= 1
                if left:
                    seen.append((n, x))
                    n += 1
            if scale < len(self.groups) - 1:
                x = self.cell(x, f"enc_tower.{n}", self.enc, "down")
                n += 1
        return elu(self.conv(elu(x), "enc0.1")), seen[::-1]

    def draw(self, i: int, raw_q: Tensor, raw_p: Tensor, noise: Tensor) -> dict[str, Tensor]:
        zs, half = {}, raw_p.shape[1] // 2
        raw = raw_q + raw_p if self.args["res_dist"] and i > 0 else raw_q
        q, p = normal(raw[:, :half], raw[:, half:]), normal(raw_p[:, :half], raw_p[:, half:])
        z = base = q[0] + q[1] * noise
        for j in range(self.args["num_nf"]):
            key = f"nf_cells.{i * self.args['num_nf'] + j}"
            z = self.flow(self.flow(z, f"{key}.cell1", False), f"{key}.cell2", True)
        exact = torch.log(p[1] / q[1]) + (q[1] ** 2 + (q[0] - p[0]) ** 2) / (2 * p[1] ** 2) - 0.5
        zs["log_q"], zs["log_p"] = log_normal(base, *q), log_normal(z, *p)
        zs["kl"] = zs["log_q"] - zs["log_p"] if self.args["num_nf"] else exact
        return {k: v.flatten(1).sum(1) for k, v in zs.items()} | {"z": z}

    def forward(self, x: Tensor, noise: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Decoder output [B, P, H, W] for images already padded, and kl [B, L], log_q [B], log_p [B]."""
        x, noise = x.double(), [eps.double() for eps in noise]
        top, seen = self.bottom_up(x)
        raw_q = self.conv(top, "enc_sampler.0")
        groups = [self.draw(0, raw_q, torch.zeros_like(raw_q), noise[0])]
        if sum(self.groups) == 1:
            s = self.conv(groups[0]["z"], "stem_decoder")
        else:
            s = self.p["prior_ftr0"].expand(x.shape[0], -1, -1, -1)
            s = self.conv(torch.cat([s, groups[0]["z"]], 1), "dec_tower.0.conv")
            s = self.tower(s, seen, groups, noise)
        n = 0
        for _ in range(self.args["num_postprocess_blocks"]):
            for i in range(self.args["num_postprocess_cells"]):
                s = self.cell(s, f"post_process.{n}", self.post, "up" if i == 0 else "")
                n += 1
        out = self.conv(elu(s), "image_conditional.1")
        kl = torch.stack([g["kl"] for g in groups], 1)
        return out, {"kl": kl} | {k: torch.stack([g[k] for g in groups]).sum(0) for k in ("log_q", "log_p")}

    def tower(self, s: Tensor, seen: list[tuple[int, Tensor]], groups: list[Any], noise: list[Tensor]) -> Tensor:
        n, i = 1, 1
        for scale, count in enumerate(self.groups[::-1]):
            for group in range(count):
                if scale == 0 and group == 0:
                    continue
                for _ in range(self.args["num_cell_per_cond_dec"]):
                    s = self.cell(s, f"dec_tower.{n}", self.dec)
                    n += 1
                raw_p = self.conv(elu(s), f"dec_sampler.{i - 1}.1")
                combiner, feature = seen[i - 1]
                raw_q = self.conv(feature + self.conv(s, f"enc_tower.{combiner}.conv"), f"enc_sampler.{i}")
                groups.append(self.draw(i, raw_q, raw_p, noise[i]))
                s = self.conv(torch.cat([s, groups[i]["z"]], 1), f"dec_tower.{n}.conv")
                n, i = n + 1, i + 1
            if scale < len(self.groups) - 1:
                s = self.cell(s, f"dec_tower.{n}", self.dec, "up")
                n += 1
        return s

    def log_likelihood(self, out: Tensor, x: Tensor) -> Tensor:
        """Nats per image [B] by the published rules; x and out cropped."""
        x = x.double()
        if x.shape[1] == 1:
            p = 1 / (1 + torch.exp(-out))
            return torch.log(torch.where(x > 0.5, p, 1 - p)).flatten(1).sum(1)
        y = 2 * x - 1
        m = self.args["num_mixture_dec"]
        if m == 1:
            return log_normal(y, *normal(out[:, :3], out[:, 3:])).flatten(1).sum(1)
        b, _, h, w = x.shape
        weights = torch.softmax(out[:, :m], 1)
        body = out[:, m:].reshape(b, 3, 3, m, h, w)
        mean, scale, k = body[:, :, 0], torch.exp(body[:, :, 1].clamp(min=-7)), torch.tanh(body[:, :, 2])
        y = y[:, :, None]
        means = [mean[:, 0], mean[:, 1] + k[:, 0] * y[:, 0], mean[:, 2] + k[:, 1] * y[:, 0] + k[:, 2] * y[:, 1]]
        bins = 2 ** self.args["num_x_bits"] - 1
        logs = torch.zeros_like(weights)
        for c in range(3):
            at = (y[:, c] - means[c]) / scale[:, c]
            half = 1 / (bins * scale[:, c])
            inner = torch.sigmoid(at + half) - torch.sigmoid(at - half)
            density = torch.log(torch.sigmoid(at) * torch.sigmoid(-at) / scale[:, c]) - math.log(bins / 2)
            value = torch.where(inner > 1e-5, torch.log(inner.clamp(min=1e-10)), density)
            value = torch.where(y[:, c] > 0.99, F.logsigmoid(half - at), value)
            logs = logs + torch.where(y[:, c] < -0.999, F.logsigmoid(at + half), value)
        return torch.logsumexp(torch.log(weights) + logs, 1).flatten(1).sum(1)
