"""The inner loops of WaveNet sampling, compiled for the CPU by numba: no Python and no PyTorch between two steps.

A step multiplies each weight once per item of the batch, so that reading the weights is most of its cost. They are
packed in the order in which they are read; see `audiovq.sampling.compiled`. Each item is computed by the same
operations in the same order, whatever else is in the batch.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, no_type_check

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

Array = Any  # numba's compiled functions are not type-checked: shapes are in their docstrings.

WIDTH = 64 if binding.get_host_cpu_features().get("avx512f") else 32
"""Outputs that a tile computes at once: four vector registers an item with AVX-512 or AVX2, enough to hide latency."""
ITEMS = 4 if WIDTH == 64 else 2
"""Items of a batch that share one read of a weight: as many as leave the accumulators in registers."""


def compiled(function: Any) -> Any:
    """Compile at the first call, and keep the result for later processes where numba finds a folder for it.

    Multiply-adds may be fused; sums are never reordered, so that an item does not depend on its batch.
    """
    options = {"fastmath": {"contract"}, "nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # Neither the package's folder nor the user's can be written to.
        return njit(**options)(function)


class Weights(NamedTuple):
    """A WaveNet's weights in float32. O' is the number O of outputs, rounded up to a multiple of `WIDTH`.

    Matrices [O, I] are packed as [O' / WIDTH, I, WIDTH], biases as [O'].
    """

    embedding: Array  # [Q * (K + 1), R]
    gates: Array  # [L, (2R)' / WIDTH, kernel * R, WIDTH]
    gate_biases: Array  # [L, (2R)']
    outputs: Array  # [L, (R + S)' / WIDTH, R, WIDTH]
    output_biases: Array  # [L, (R + S)']
    hidden: Array  # [S' / WIDTH, S, WIDTH]
    hidden_bias: Array  # [S']
    last: Array  # [(Q * K)' / WIDTH, S, WIDTH]
    last_bias: Array  # [(Q * K)']
    dilations: Array  # [L]


# --- matrix products -------------------------------------------------------------------------------------------------


@no_type_check
def tile_kernel(items: int) -> Any:
    """y[item, block * WIDTH :][:WIDTH] += x[item] @ weight[block] for `items` items, in vector registers."""

    @intrinsic
    def tile(_typing, weight, block, x, y, item):
        def generate(context, builder, signature, arguments):
            weight, block, x, y, item = arguments
            weight, x, y = (
                cgutils.create_struct_proxy(kind)(context, builder, value)
                for kind, value in zip(
                    (signature.args[0], signature.args[2], signature.args[3]), (weight, x, y), strict=True
                )
            )
            lane = ir.FloatType()
            vector = ir.VectorType(lane, WIDTH)
            depth = builder.extract_value(weight.shape, 1)

            def rows(array):
                length = builder.extract_value(array.shape, 1)
                for number in range(items):
                    row = builder.add(item, ir.Constant(item.type, number))
                    yield builder.gep(array.data, [builder.mul(row, length)])

            def as_vector(pointer, offset):
                return builder.bitcast(builder.gep(pointer, [offset]), vector.as_pointer())

            width = ir.Constant(block.type, WIDTH)
            start = builder.mul(builder.mul(block, depth), width)
            inputs = list(rows(x))
            outputs = [as_vector(row, builder.mul(block, width)) for row in rows(y)]
            sums = [cgutils.alloca_once_value(builder, builder.load(output, align=4)) for output in outputs]
            with cgutils.for_range(builder, depth) as loop:
                offset = builder.add(start, builder.mul(loop.index, width))
                column = builder.load(as_vector(weight.data, offset), align=4)
                for row, total in zip(inputs, sums, strict=True):
                    factor = splat(builder, builder.load(builder.gep(row, [loop.index])), vector)
                    product = builder.fmul(column, factor, flags=("contract",))
                    builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)
            for output, total in zip(outputs, sums, strict=True):
                builder.store(builder.load(total), output, align=4)
            return context.get_dummy_value()

        return types.void(weight, types.intp, x, y, types.intp), generate

    return tile


def splat(builder: Any, value: Any, vector: Any) -> Any:
    """A vector whose lanes are all `value`."""
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(first, undefined, lanes)


one_item, some_items = tile_kernel(1), tile_kernel(ITEMS)


@compiled
@no_type_check
def multiply_add(weight, x, y):
    """y[:, :] += x @ weight of [O' / WIDTH, I, WIDTH], for x [B, I or more] and y [B, O']."""
    batch = len(x)
    grouped = batch - batch % ITEMS
    for block in range(len(weight)):
        for item in range(0, grouped, ITEMS):
            some_items(weight, block, x, y, item)
        for item in range(grouped, batch):
            one_item(weight, block, x, y, item)


@compiled
@no_type_check
def copy(source, target, count):
    """The first values; numba's assignment of slices takes longer than the copying."""
    for number in range(count):
        target[number] = source[number]


@compiled
@no_type_check
def add(source, target, count):
    """As `copy`, but the sum."""
    for number in range(count):
        target[number] += source[number]


# --- gated units -----------------------------------------------------------------------------------------------------

LOG2_E, LN_2 = np.float32(1 / math.log(2)), np.float32(math.log(2))
ROUND = np.float32(1.5 * 2**23)  # Adding it to a float32 leaves no bits for a fraction.
ONE, TWO, LIMIT = np.float32(1), np.float32(2), np.float32(40)
TAYLOR = tuple(np.float32(1 / math.factorial(n)) for n in range(2, 8))


@compiled
@no_type_check
def exponential(x):
    """exp(x) in float32, for x from [-40, 40]: 2^n exp(r) with |r| <= log(2) / 2. It compiles to vector code."""
    x = min(max(x, -LIMIT), LIMIT)
    n = (x * LOG2_E + ROUND) - ROUND
    r = x - n * LN_2
    c2, c3, c4, c5, c6, c7 = TAYLOR
    series = ONE + r * (ONE + r * (c2 + r * (c3 + r * (c4 + r * (c5 + r * (c6 + r * c7))))))
    return series * np.int32((np.int32(n) + 127) << 23).view(np.float32)


@compiled
@no_type_check
def gate_units(gates, units):
    """units [B, R] = tanh of gates [B, :R] times sigmoid of gates [B, R:2R]."""
    channels = units.shape[1]
    for item in range(len(units)):
        signals, openings, unit = gates[item, :channels], gates[item, channels : 2 * channels], units[item]
        for channel in range(channels):
            a, b = exponential(-TWO * signals[channel]), exponential(-openings[channel])
            unit[channel] = (ONE - a) / ((ONE + a) * (ONE + b))


# --- drawing ---------------------------------------------------------------------------------------------------------


@compiled
@no_type_check
def draw_class(logits, number, temperature, top_k, top_p, weights):
    """`audiovq.sampling.base.sample` of one item and stream; `weights` [K] is written to; `top_k` 0: none."""
    largest, likeliest = logits[0], 0
    for k in range(1, len(logits)):
        if logits[k] > largest:
            largest, likeliest = logits[k], k
    if temperature == 0:
        return likeliest
    total = 0.0
    for k in range(len(logits)):
        weights[k] = math.exp((np.float64(logits[k]) - np.float64(largest)) / temperature)
        total += weights[k]
    if 0 < top_k < len(weights) or top_p < 1:
        total = keep_likeliest(weights, top_k, top_p)
    before = 0.0
    for k in range(len(weights)):
        before += weights[k]
        if before > number * total:
            return k
    return likeliest


@compiled
@no_type_check
def keep_likeliest(weights, top_k, top_p):
    """Set the weights to zero that the filters leave out; the sum of the others."""
    ordered = np.sort(weights)
    least = len(ordered) - top_k if 0 < top_k < len(ordered) else 0  # Place of the last that is kept.
    while least > 0 and ordered[least - 1] == ordered[least]:
        least -= 1
    if top_p < 1:
        enough, before = 0.0, 0.0
        for place in range(least, len(ordered)):
            enough += ordered[place]
        enough *= top_p
        place = len(ordered) - 1
        while place > least and before + ordered[place] < enough:
            before += ordered[place]
            place -= 1
        least = place
    lowest, total = ordered[least], 0.0
    for k in range(len(weights)):
        if weights[k] < lowest:
            weights[k] = 0
        total += weights[k]
    return total


# --- the network -----------------------------------------------------------------------------------------------------


@compiled
@no_type_check
def step(weights, past, position, classes, conditions, logits):
    """One step of the network; see `generate`.

    Args:
        position: steps taken before.
        classes: [B, Q], of the step before.
        logits: [B, (Q * K)'], written to.
    """
    batch, streams = classes.shape
    channels = weights.embedding.shape[1]
    symbols = len(weights.embedding) // streams
    taps = weights.gates.shape[2] // channels
    inputs = np.empty((batch, taps * channels), np.float32)
    gates = np.empty((batch, conditions.shape[2]), np.float32)
    units = np.empty((batch, channels), np.float32)
    # The first R channels go from layer to layer, the next S are the sum of the skip paths.
    state = np.zeros((batch, weights.output_biases.shape[1]), np.float32)
    for item in range(batch):
        for stream in range(streams):
            add(weights.embedding[stream * symbols + classes[item, stream]], state[item], channels)
    first = 0  # Row of the layer's ring buffer in `past`.
    for layer in range(len(weights.dilations)):
        dilation = weights.dilations[layer]
        length = (taps - 1) * dilation
        oldest = position % length
        for item in range(batch):
            x, queue = inputs[item], past[item, first : first + length]
            row = oldest
            for tap in range(taps - 1):
                copy(queue[row], x[tap * channels :], channels)
                row += dilation
                if row >= length:
                    row -= length
            copy(state[item], x[(taps - 1) * channels :], channels)
            copy(state[item], queue[oldest], channels)
            copy(conditions[item, layer], gates[item], gates.shape[1])
            add(weights.output_biases[layer], state[item], state.shape[1])
        first += length
        multiply_add(weights.gates[layer], inputs, gates)
        gate_units(gates, units)
        multiply_add(weights.outputs[layer], units, state)
    skips = np.empty((batch, weights.hidden.shape[1]), np.float32)
    for item in range(batch):
        copy(state[item, channels:], skips[item], skips.shape[1])
    head(weights, skips, logits)


@compiled
@no_type_check
def head(weights, skips, logits):
    """Logits [B, (Q * K)'] of the sum of the skip paths [B, S], which is written to."""
    hidden = np.empty((len(skips), len(weights.hidden_bias)), np.float32)
    for item in range(len(skips)):
        rectify(skips[item])
        copy(weights.hidden_bias, hidden[item], hidden.shape[1])
        copy(weights.last_bias, logits[item], logits.shape[1])
    multiply_add(weights.hidden, skips, hidden)
    for item in range(len(skips)):
        rectify(hidden[item])
    multiply_add(weights.last, hidden, logits)


@compiled
@no_type_check
def rectify(values):
    """ReLU, in place."""
    for number in range(len(values)):
        values[number] = max(values[number], np.float32(0))


@compiled
@no_type_check
def generate(weights, past, position, classes, uniforms, conditions, temperature, top_k, top_p, drawn):
    """Draw T steps.

    Args:
        past: ring buffers [B, rows of all layers, R], written to.
        position: steps taken before.
        classes: [B, Q], of the step before the first.
        uniforms: numbers [B, Q, T] in double precision.
        conditions: what is added to the gates, their biases included: [B, L, (2R)'].
        drawn: classes [B, Q, T], written to.
    """
    batch, streams, steps = drawn.shape
    logits = np.empty((batch, len(weights.last_bias)), np.float32)
    count = len(weights.embedding) // streams - 1
    shares = np.empty(count, np.float64)
    latest = np.empty((batch, streams), np.int64)
    for t in range(steps):
        step(weights, past, position + t, classes, conditions, logits)
        for item in range(batch):
            for stream in range(streams):
                number = uniforms[item, stream, t]
                scores = logits[item, stream * count : (stream + 1) * count]
                k = draw_class(scores, number, temperature, top_k, top_p, shares)
                drawn[item, stream, t] = k
                latest[item, stream] = k
        classes = latest
