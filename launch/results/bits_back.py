"""Lossless coding of images with a VAE: bits back (Frey & Hinton 1997) on an ANS stack (Townsend et al. 2019, BB-ANS).

An image costs its negative ELBO. The sender chooses its latents by decoding bits of earlier images with the posterior
(pops them), and the receiver gets these bits back; the latents are then encoded with the prior (pushed). All groups are
popped in one top-down pass, then pixels and groups are pushed from the bottom to the top, so that the receiver finds the
top group first. The stack must start with some bits, whose cost many images share. The top of the stack is scrambled
before an image's latents are read from it; otherwise they would depend on the previous image.

Latents live on a grid ``z = mu_p + sigma_p * step * (k + u)`` with an integer k, a step per channel and a fixed
pseudo-random offset u in [-1/2, 1/2) per latent. Over images, the offset makes z a sample from the posterior blurred
by one step. At an optimum of the ELBO the blur costs only second-order terms, so steps may be as wide as half the
posterior's standard deviation, which keeps the number of initial bits small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metrics.decisions import PosteriorMean
from metrics.likelihoods import Bernoulli, DiscretizedLogisticMixture, Likelihood
from metrics.model import VAE
from metrics.normal import Normal

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int32]]
Words = np.ndarray[Any, np.dtype[np.uint32]]
Halvings = list[list[int]]

STEPS_PER_STD = 2.0  # fewest grid steps in a standard deviation of a posterior
REACH = 16.0  # half the width of the grid, in standard deviations of the prior
WINDOW = 6.0  # half the width of a posterior's code, in its standard deviations
MOST_HALVINGS = 13  # 2 * REACH * 2^13 grid points: each still has a probability of at least 2^-24
PRIOR_ENTROPY = 2.05  # bits of a standard normal on a grid of step 1; a step of 2^-h adds h bits
SPARE_WORDS = 4  # words of the coder's own state, besides bits that were never read


def _stream() -> Any:
    """The entropy coders of the package constriction, imported only when needed."""
    try:
        import constriction
    except ModuleNotFoundError as error:
        raise ValueError("the package constriction is missing; pip install constriction") from error
    return constriction.stream


_OFFSETS, _PAD, _INITIAL = 1, 2, 3  # purposes of pseudo-random numbers


def _source(seed: int, purpose: int, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed, purpose, number]))


@torch.no_grad()
def check_codable(model: VAE) -> None:
    """Refuse a model whose ELBO is not a code length.

    Raises:
        ValueError: its likelihood assigns no probabilities to pixels, or its posteriors have normalising flows, which
            move latents off the grid.
    """
    spec = model.spec
    x = next(model.parameters()).new_zeros(1, spec.channels, spec.height, spec.width)
    output = model.top_down([PosteriorMean()] * len(model.group_shapes), model.bottom_up(x))
    is_binary = isinstance(output.likelihood, Bernoulli) and spec.num_bits == 1
    if not (is_binary or isinstance(output.likelihood, DiscretizedLogisticMixture)):
        raise ValueError(
            f"a {type(output.likelihood).__name__} likelihood on {spec.num_bits}-bit images gives no pixel "
            "probabilities to code with; choose a run with the mixture, or with 1-bit images"
        )
    if any(group.base is not None for group in output.groups):
        raise ValueError(
            "the posteriors of this run have flows, which move latents off a grid; choose a run without flows"
        )


@torch.no_grad()
def choose_halvings(model: VAE, x: Tensor, generator: torch.Generator) -> Halvings:
    """Choose h of the step 2^-h, in prior standard deviations, for each group and channel from a few images ``x``.

    Posteriors as wide as their priors need few grid points, narrow ones many; the 2 % quantile of the widths decides.
    """
    noise = [torch.randn(len(x), *shape, generator=generator) for shape in model.group_shapes]
    output = model.top_down(model.posterior_samples(noise), model.bottom_up(x))
    halvings: Halvings = []
    for group in output.groups:
        ratio = (group.posterior.std / group.prior.std).transpose(0, 1).flatten(1).double().numpy()  # [C, B H W]
        needed = np.log2(STEPS_PER_STD / np.quantile(ratio, 0.02, axis=1))
        halvings.append(np.clip(np.ceil(needed), 1, MOST_HALVINGS).astype(int).tolist())
    return halvings


def _finite(values: Tensor) -> Floats:
    array: Floats = values.detach().squeeze(0).double().numpy()
    if not np.isfinite(array).all():
        raise FloatingPointError("the model's outputs for an image are not finite; choose another checkpoint")
    return array


@dataclass
class _Grid:
    """The grid of one group of one image: the Decision that codes or replays its latents."""

    halvings: Sequence[int]  # h of each channel's step 2^-h
    offset: Floats  # u, in the group's shape
    coder: Any
    pops: str | None  # distribution whose code pops the latents; None replays ``index``
    index: Ints | None = None  # k, in the group's shape
    distributions: dict[str, tuple[Floats, Floats]] = field(default_factory=dict)
    from_posterior = False  # the latents that the decoder sees

    @property
    def _step(self) -> Floats:
        step: Floats = 2.0 ** -np.asarray(self.halvings, np.float64)
        return step.reshape(-1, *[1] * (self.offset.ndim - 1))

    def draw(self, prior: Normal, posterior: Normal) -> Tensor:
        """Pop or replay the latents [1, ...]; keep posterior and prior in units of the grid."""
        mean, std = _finite(prior.mean), _finite(prior.std)
        unit = std * self._step
        shift = (_finite(posterior.mean) - mean) / unit - self.offset
        self.distributions = {
            "prior": (-self.offset, np.broadcast_to(1.0 / self._step, mean.shape)),
            "posterior": (shift, _finite(posterior.std) / unit),
        }
        if self.pops is not None:
            channels = [self.coder.decode(codes, *of) + centre for codes, centre, *of in self._codes(self.pops)]
            self.index = np.stack(channels).reshape(self.offset.shape)
        assert self.index is not None
        z = mean + unit * (self.index + self.offset)
        return torch.from_numpy(z).to(prior.mean.dtype)[None]

    def _codes(self, which: str) -> list[tuple[Any, Ints, Floats, Floats]]:
        """Family of quantised Gaussians of each channel, the integers at its centre, and its parameters.

        The posterior's family covers a window around each mean, so that the floor under every probability does not
        allow draws far from it.
        """
        means, stds = self.distributions[which]
        codes = []
        for mean, std, halvings in zip(means, stds, self.halvings, strict=True):
            mean, std = mean.ravel(), std.ravel()
            reach = int(REACH * 2**halvings)
            window = reach if which == "prior" else min(reach, math.ceil(WINDOW * float(std.max())))
            centre = np.clip(np.rint(mean), window - reach, reach - window).astype(np.int32)
            codes.append((_stream().model.QuantizedGaussian(-window, window), centre, mean - centre, std))
        return codes

    def push(self, which: str) -> None:
        """Push the latents with this distribution: the inverse of popping."""
        assert self.index is not None
        for channel, (family, centre, mean, std) in reversed(list(enumerate(self._codes(which)))):
            self.coder.encode_reverse(self.index[channel].ravel() - centre, family, mean, std)


def _pixel_codes(likelihood: Likelihood, x: Tensor, channel: int) -> tuple[Any, Floats]:
    """The family and parameters of all pixels of a channel given the earlier channels of ``x`` [1, C, H, W]."""
    if isinstance(likelihood, Bernoulli):
        ones = _finite(torch.sigmoid(likelihood.logits[:, channel].double()))
        return _stream().model.Bernoulli(perfect=False), ones.ravel()
    assert isinstance(likelihood, DiscretizedLogisticMixture)
    levels = _finite(likelihood.channel_pmf(channel, x))
    return _stream().model.Categorical(perfect=False), levels.reshape(x[0, 0].numel(), -1)


@dataclass(frozen=True)
class BitsBack:
    """Coder that puts images, one after another, onto a stack of bits.

    Encoder and decoder must see bit-identical floats: the same weights in evaluation mode, the same kind of processor,
    PyTorch and number of threads, one image at a time, no autocast.

    Args:
        model: in evaluation mode on the CPU.
        halvings: from :func:`choose_halvings`.
        seed: seed of the grids' offsets.
    """

    model: VAE
    halvings: Halvings
    seed: int

    def _grids(self, coder: Any, number: int, pops: str | None, indices: Sequence[Ints] | None = None) -> list[_Grid]:
        source = _source(self.seed, _OFFSETS, number)
        offsets = [source.random(shape) - 0.5 for shape in self.model.group_shapes]
        known: Sequence[Ints | None] = indices or [None] * len(offsets)
        return [
            _Grid(halvings, offset, coder, pops, index)
            for halvings, offset, index in zip(self.halvings, offsets, known, strict=True)
        ]

    def _floats(self, levels: Ints) -> Tensor:
        return torch.from_numpy(levels)[None].float().div_(2**self.model.spec.num_bits - 1)

    def _scramble(self, coder: Any, number: int) -> int:
        """XOR the top of the stack with pseudo-random bits, its own inverse; return the lowest height in words.

        The top of the stack holds the latents of the previous image. Its bits are uniform only if those latents follow
        the prior, and latents read from other bits are not samples from the posterior. Without scrambling, files take up
        to 3 % more bits.
        """
        bits = sum(
            (halving + PRIOR_ENTROPY) * math.prod(shape[1:])
            for halvings, shape in zip(self.halvings, self.model.group_shapes, strict=True)
            for halving in halvings
        )
        uniform, count = _stream().model.Uniform(2**16), math.ceil(bits / 16) + 4
        read = coder.decode(uniform, count)
        lowest = int(coder.num_words())
        pad = _source(self.seed, _PAD, number).integers(2**16, size=count, dtype=np.int32)
        coder.encode_reverse(read ^ pad, uniform)
        return lowest

    @torch.no_grad()
    def push(self, coder: Any, levels: Ints, number: int) -> int:
        """Code image ``number``, integer ``levels`` [C, H, W]; return the stack's lowest height in words."""
        x = self._floats(levels)
        lowest = self._scramble(coder, number)
        grids = self._grids(coder, number, "posterior")
        likelihood = self.model.top_down(grids, self.model.bottom_up(x)).likelihood
        lowest = min(lowest, int(coder.num_words()))
        for channel in reversed(range(len(levels))):
            coder.encode_reverse(levels[channel].ravel(), *_pixel_codes(likelihood, x, channel))
        for grid in reversed(grids):
            grid.push("prior")
        return lowest

    @torch.no_grad()
    def pop(self, coder: Any, number: int) -> Ints:
        """Undo :meth:`push`: return the image's levels and restore the stack."""
        spec = self.model.spec
        grids = self._grids(coder, number, "prior")
        likelihood = self.model.top_down(grids, num=1).likelihood
        levels: Ints = np.zeros((spec.channels, spec.height, spec.width), np.int32)
        for channel in range(spec.channels):
            levels[channel] = coder.decode(*_pixel_codes(likelihood, self._floats(levels), channel)).reshape(
                spec.height, spec.width
            )
        replayed = self._grids(coder, number, None, [grid.index for grid in grids if grid.index is not None])
        self.model.top_down(replayed, self.model.bottom_up(self._floats(levels)))
        for grid in reversed(replayed):
            grid.push("posterior")
        self._scramble(coder, number)
        return levels


@dataclass(frozen=True)
class Coded:
    """A stack of images: its ``words``, and the number of them that are initial bits, at its bottom."""

    words: Words
    num_initial: int

    @property
    def bits(self) -> int:
        """All bits, including the initial ones."""
        return 32 * len(self.words)

    @property
    def net_bits(self) -> int:
        """Bits that the images added."""
        return 32 * (len(self.words) - self.num_initial)


def _initial_words(codec: BitsBack) -> Words:
    """Random bits, more than an image's latents can read: each pop takes at most 24."""
    num_latents = sum(math.prod(shape) for shape in codec.model.group_shapes)
    words: Words = _source(codec.seed, _INITIAL, 0).integers(1, 2**32, num_latents + 64, dtype=np.uint32)
    return words


Progress = Callable[[Iterable[int]], Iterable[int]]


def encode(codec: BitsBack, images: Sequence[Ints], progress: Progress = iter) -> Coded:
    """Stack all ``images``, each levels [C, H, W]; drop initial bits that no image read."""
    initial = _initial_words(codec)
    coder = _stream().stack.AnsCoder(initial)
    lowest = min(codec.push(coder, images[number], number) for number in progress(range(len(images))))
    unread = max(0, min(lowest, len(initial)) - SPARE_WORDS)
    return Coded(coder.get_compressed()[unread:], len(initial) - unread)


def decode(codec: BitsBack, coded: Coded, num: int, progress: Progress = iter) -> list[Ints]:
    """The images that :func:`encode` stacked.

    Raises:
        ValueError: the remaining bits are not the initial ones, so the floats differ from the encoder's.
    """
    coder = _stream().stack.AnsCoder(coded.words)
    mismatch = ValueError("the decoded images are wrong; decompress with the PyTorch that compressed")
    images: list[Ints] = []
    try:
        for number in progress(range(num - 1, -1, -1)):
            if coder.num_words() == 0:
                raise ValueError("the stack is empty")
            images.append(codec.pop(coder, number))
    except BaseException as error:
        # An Exception, such as a KeyError: the posterior has no code for a latent. A panic of the coder, which is not
        # an Exception: the words were not written by a coder.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise mismatch from error
        raise
    expected = _initial_words(codec)
    if not np.array_equal(coder.get_compressed(), expected[len(expected) - coded.num_initial :]):
        raise mismatch
    return images[::-1]
