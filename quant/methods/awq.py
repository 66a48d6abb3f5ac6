"""AWQ: activation-aware weight quantization, around any other method.

    W x = (W diag(s)) (x / s)        s_j = (mean |x_j|)**alpha / sqrt(max s * min s),    alpha in {0, 0.05, .. 0.95}

Columns whose inputs are large are scaled up before they are rounded, so their error counts less. The alpha taken is
that of least output error tr(dW H dW^T), H = mean x x^T, over some of the rows: it is one number for all of them. With
`clip` each group is then clipped at the share of its largest magnitude, 1 to 0.5 in 20 steps, that leaves the least
error dw H[g, g] dw^T of its own columns g. Neither is done where the output error of the layer would not fall. What x
is multiplied with, 1 / s, is stored in float16.
Source: Lin et al. 2023, arXiv 2306.00978. There queries and keys are not clipped; here the error decides. There layers
that read one input (q, k, v; gate, up) share one s, which folds into the operation before them; here each layer has
its own: more freedom, for a multiplication of x at run time and 16 bits a column, which are counted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quant.core import Calibration, QuantizedTensor, Quantizer, register
from quant.formats import Affine, Codebook, FixedCodebook, Scaled
from quant.grouping import Group, expand, grouped, largest_of
from quant.methods.nf4 import NF
from quant.methods.uniform import Uniform
from quant.rows import row_blocks

__all__ = ["AWQ", "behind", "factors", "output_error"]

ALPHAS = [i / 20 for i in range(20)]
CLIPS = [1 - i / 40 for i in range(1, 21)]
LEAST = 1e-4  # magnitudes below are taken as this: an input that is never seen does not decide the range of s
ROWS = 256  # rows over which alpha is chosen; the layer as a whole decides whether it is taken
LARGEST = 2.0**15  # factors stay within what float16 holds in full precision, 2**-14 to this


@dataclass(frozen=True)
class AWQ(Quantizer):
    """`inner` quantizes the scaled weight; its groups are those that are clipped, whole rows where it has none."""

    inner: Quantizer
    clip: bool = True

    source = "Lin et al. 2023 (AWQ), arXiv 2306.00978"
    idea = "columns with large inputs are scaled up before they are rounded; groups are clipped"

    @property
    def family(self) -> str:
        return self.inner.family

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"second_moment", "magnitude"}

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        assert calibration is not None
        assert calibration.second_moment is not None
        assert calibration.magnitude is not None
        h = calibration.second_moment.to(weight)
        size = calibration.magnitude.to(weight).clamp(min=LEAST)
        rows = _some_rows(len(weight))
        sample, some = weight[rows], _rows_of(calibration, rows)
        found = [self._scaled_by(sample, some, factors(size**alpha)) for alpha in ALPHAS]
        errors = [output_error(made.decode() - sample, h) for made in found]
        best = self._scaled_by(weight, calibration, factors(size**0.0))
        least = output_error(best.decode() - weight, h)
        chosen = ALPHAS[errors.index(min(errors))]
        if chosen:
            made = self._scaled_by(weight, calibration, factors(size**chosen))
            error = output_error(made.decode() - weight, h)
            if error < least:
                best, least = made, error
        if self.clip:
            columns = best.columns
            seen = behind(calibration, columns) if self.inner.needs else None
            limits = self._limits(weight, best, h, seen)
            bound = expand(limits, best.shape, _groups_of(best))
            made = _scaled(self.inner.quantize((weight / columns.float()).clamp(-bound, bound), seen), columns)
            if output_error(made.decode() - weight, h) < least:
                best = made
        return best

    def _scaled_by(self, weight: Tensor, calibration: Calibration, columns: Tensor) -> Scaled:
        seen = behind(calibration, columns) if self.inner.needs else None
        return _scaled(self.inner.quantize(weight / columns.float(), seen), columns)

    def _limits(self, weight: Tensor, made: Scaled, h: Tensor, seen: Calibration | None) -> Tensor:
        """The magnitude [n, groups] at which each group of the scaled weight is clipped.

        Where rows are quantized one by one, a CPU goes through the shares a block of rows at a time.
        """
        group, columns, decoded = _groups_of(made), made.columns.float(), made.decode()
        moments = _diagonal_blocks(h, group)
        one_by_one, found = seen is None and _by_rows(made.inner), []
        for rows in row_blocks(weight) if one_by_one else [slice(0, len(weight))]:
            w = weight[rows]
            scaled = w / columns
            largest = largest_of(grouped(scaled, group))
            limit, least = largest, _group_errors(decoded[rows] - w, moments, group)
            for share in CLIPS:
                tried = largest * share
                bound = expand(tried, (len(w), w.shape[1]), group)
                q = self.inner.quantize(scaled.clamp(-bound, bound), seen)
                error = _group_errors(q.decode() * columns - w, moments, group)
                less = error < least
                limit, least = torch.where(less, tried, limit), torch.where(less, error, least)
            found.append(limit)
        return torch.cat(found)


def factors(s: Tensor) -> Tensor:
    """What x is multiplied with for column scales `s` [k], about 1 in the middle of their range: [1, k] float16."""
    balanced = s.double() / (s.double().max() * s.double().min()).sqrt()
    return (1 / balanced).clamp(0.5 / LARGEST, LARGEST)[None].half()


def behind(calibration: Calibration, columns: Tensor) -> Calibration:
    """What the calibration [k] becomes for the weight W / columns, whose inputs are x * columns."""
    moment, magnitude, fisher = calibration.second_moment, calibration.magnitude, calibration.fisher
    c = columns[0].float()
    c = c if moment is None else c.to(moment.device)
    return Calibration(
        None if moment is None else moment * c * c[:, None],
        None if magnitude is None else magnitude * c,
        None if fisher is None else fisher * c.square(),
        calibration.n_samples,
    )


def _some_rows(n: int) -> Tensor:
    """Up to `ROWS` of n rows, at even spacing."""
    return torch.arange(n) if n <= ROWS else torch.linspace(0, n - 1, ROWS).round().long()


def _rows_of(calibration: Calibration, rows: Tensor) -> Calibration:
    """The calibration of those rows of the layer alone."""
    fisher = calibration.fisher
    return replace(calibration, fisher=None if fisher is None else fisher[rows])


def output_error(dw: Tensor, h: Tensor) -> float:
    """tr(dw h dw^T), the mean squared error of the outputs, summed over them: `dw` [n, k], `h` [k, k]."""
    return float(((dw @ h) * dw).sum(dtype=torch.float64))


def _scaled(inner: QuantizedTensor, columns: Tensor) -> Scaled:
    return Scaled(inner.shape, torch.float32, inner, columns)


def _groups_of(made: Scaled) -> Group:
    """The groups that are clipped: those of the weight's scales, or its rows."""
    group: Group = made.inner.group if isinstance(made.inner, Affine | Codebook) else "channel"
    return "channel" if group == "tensor" else group


def _by_rows(made: QuantizedTensor) -> bool:
    """Whether the grid of a row is that row's own: no scale, quantized scale or table comes from several rows."""
    if not isinstance(made, Affine | Codebook) or made.group == "tensor" or isinstance(made.scale, QuantizedTensor):
        return False
    return isinstance(made, Affine | FixedCodebook) or made.rows == 1


def _diagonal_blocks(h: Tensor, group: Group) -> Tensor:
    """h[g, g] for the columns of each group, [groups, size, size]."""
    if not isinstance(group, int):
        return h[None]
    short = -len(h) % group
    cells = torch.nn.functional.pad(h, (0, short, 0, short)).view(-(-len(h) // group), group, -1, group)
    return cells.diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()


def _group_errors(dw: Tensor, blocks: Tensor, group: Group) -> Tensor:
    """dw[g] blocks[g] dw[g]^T for each group of each row: [n, groups]."""
    cells = grouped(dw, group).transpose(0, 1)
    return (torch.bmm(cells, blocks) * cells).sum(-1).T


register("awq-int4-g64", AWQ(Uniform(4, 64, "integer")))
register("awq-int3-g64", AWQ(Uniform(3, 64, "integer")))
register("awq-nf4-g64", AWQ(NF(scale="float16")))
