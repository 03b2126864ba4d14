"""The kernels: each program reads the logits of one position once. They need Triton, which comes with torch for CUDA.

All see a row of logits `z / temperature`, where forbidden tokens have -inf, tile by tile. What is kept of the tiles so
far is relative to the largest logit so far, and is scaled when that grows, so that nothing overflows.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tile(row, columns, mask_token_id, inverse_temperature, NUM_TOKENS: tl.constexpr):
    """Some columns of a row, float32: -inf where the token may not be drawn."""
    z = tl.load(row + columns, mask=columns < NUM_TOKENS, other=float("-inf")).to(tl.float32)
    return tl.where(columns == mask_token_id, float("-inf"), z * inverse_temperature)


@triton.jit
def _finite(largest):
    """The largest logit of a tile, as what can be subtracted from all of them: 0 where all are -inf."""
    return tl.where(largest == float("-inf"), 0.0, largest)


# Arguments that change from step to step, which must not make the kernel be compiled again.
_CHANGING = ("rows", "wanted", "length", "mask_token_id")


@triton.jit(do_not_specialize=[*_CHANGING, "tokens", "scores"])
def row_scores(
    logits,
    rows,
    wanted,
    tokens,
    scores,
    length,
    row_stride,
    position_stride,
    mask_token_id,
    inverse_temperature,
    beta,
    NUM_TOKENS: tl.constexpr,
    KIND: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    HAS_WANTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One number per row, float32; 0 where it is not wanted.

    Of the KIND "confidence", "moment", "margin" or "entropy", as `hf_maskdiff.orders` defines them, or "log_prob".
    """
    at = tl.program_id(0).to(tl.int64)
    is_wanted = True
    if HAS_WANTED:
        is_wanted = tl.load(wanted + at) != 0
    if is_wanted:
        index = at
        if HAS_ROWS:
            index = tl.load(rows + at)
        row = logits + (index // length) * row_stride + (index % length) * position_stride
        lanes = tl.arange(0, BLOCK)
        largest = tl.full((), float("-inf"), tl.float32)
        mass = tl.zeros((BLOCK,), tl.float32)  # of each lane: the sum of exp(z - largest)
        other = tl.zeros((BLOCK,), tl.float32)  # and what else the score is made of
        first = tl.full((BLOCK,), float("-inf"), tl.float32)
        second = tl.full((BLOCK,), float("-inf"), tl.float32)
        for start in range(0, NUM_TOKENS, BLOCK):
            z = _tile(row, start + lanes, mask_token_id, inverse_temperature, NUM_TOKENS)
            now = tl.maximum(largest, tl.max(z, 0))
            away = z - _finite(now)
            shift = largest - _finite(now)  # -inf in the first tile, where there is nothing to scale
            weight = tl.exp(away)
            if KIND == "moment":
                other = other * tl.exp(shift * beta) + tl.exp(away * beta)
            if KIND == "entropy":
                before = tl.where(shift == float("-inf"), 0.0, tl.exp(shift) * (other + shift * mass))
                other = before + tl.where(weight == 0.0, 0.0, weight * away)
            if KIND == "margin":
                second = tl.maximum(second, tl.minimum(first, z))
                first = tl.maximum(first, z)
            mass = mass * tl.exp(shift) + weight
            largest = now
        total = tl.sum(mass, 0).to(tl.float64)
        # A row without a token to draw is no number, as one with NaN or +inf.
        total = tl.where(largest == float("-inf"), float("nan"), total)
        score = -tl.log(total)
        if KIND == "moment":
            score += tl.log(tl.sum(other, 0).to(tl.float64)) / beta
        if KIND == "entropy":
            score += tl.sum(other, 0).to(tl.float64) / total
        if KIND == "margin":
            holds_first = tl.min(tl.where(first == largest, lanes, BLOCK), 0)
            runner_up = tl.max(tl.where(lanes == holds_first, second, first), 0)
            score += tl.log(1.0 - tl.exp((runner_up - largest).to(tl.float64)))
        if KIND == "log_prob":
            token = tl.load(tokens + at)
            inside = (token >= 0) & (token < NUM_TOKENS) & (token != mask_token_id)
            z_of = tl.load(row + token, mask=inside, other=float("-inf")).to(tl.float32) * inverse_temperature
            score += tl.where(inside, z_of - largest, float("-inf")).to(tl.float64)
        tl.store(scores + at, score.to(tl.float32))
    else:
        tl.store(scores + at, 0.0)


_OF_THE_DRAW = ("uniform", "beta", "otherwise", "num_ranks", "beta_row_stride", "beta_rank_stride")


@triton.jit(do_not_specialize=[*_CHANGING, *_OF_THE_DRAW, "drawn", "log_probs"])
def row_draws(
    logits,
    rows,
    wanted,
    uniform,
    beta,
    otherwise,
    drawn,
    log_probs,
    length,
    row_stride,
    position_stride,
    num_ranks,
    beta_row_stride,
    beta_rank_stride,
    mask_token_id,
    inverse_temperature,
    NUM_TOKENS: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    HAS_WANTED: tl.constexpr,
    HAS_BETA: tl.constexpr,
    HAS_OTHERWISE: tl.constexpr,
    HAS_LOG_PROBS: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
):
    """One token per row from the normalised p^beta, by inverting its cumulative distribution, and its log-probability.

    The mass of each tile is kept. The tile in which the cumulative mass exceeds the level is read a second time.
    """
    at = tl.program_id(0).to(tl.int64)
    is_wanted = True
    if HAS_WANTED:
        is_wanted = tl.load(wanted + at) != 0
    token = tl.full((), 0, tl.int64)
    log_prob = tl.full((), 0.0, tl.float64)
    found = tl.full((), 0, tl.int1)
    if is_wanted:
        index = at
        if HAS_ROWS:
            index = tl.load(rows + at)
        row = logits + (index // length) * row_stride + (index % length) * position_stride
        sharpness = tl.full((), 1.0, tl.float32)
        if HAS_BETA:
            place = (at // num_ranks) * beta_row_stride + (at % num_ranks) * beta_rank_stride
            sharpness = tl.load(beta + place).to(tl.float32)
        lanes = tl.arange(0, BLOCK)
        tiles = tl.arange(0, TILES)
        peaks = tl.full((TILES,), float("-inf"), tl.float32)
        masses = tl.zeros((TILES,), tl.float64)
        for tile in range(0, tl.cdiv(NUM_TOKENS, BLOCK)):
            z = _tile(row, tile * BLOCK + lanes, mask_token_id, inverse_temperature, NUM_TOKENS)
            peak = tl.max(z, 0)
            mass = tl.sum(tl.exp((z - _finite(peak)) * sharpness), 0)
            peaks = tl.where(tiles == tile, peak, peaks)
            masses = tl.where(tiles == tile, mass.to(tl.float64), masses)
        largest = tl.max(peaks, 0)
        scales = tl.exp((peaks - _finite(largest)) * sharpness).to(tl.float64)
        cumulative = tl.cumsum(masses * scales, 0)
        total = tl.max(cumulative, 0)
        # A sum that is no number does not always win a maximum, so it is asked for by itself.
        total = tl.where(tl.sum(masses, 0) >= 0.0, total, float("nan"))
        # The noise is below 1, so the level is strictly below the total, and a last tile of mass 0 is never reached.
        level = tl.load(uniform + at) * total
        found = (total > 0.0) & (total < float("inf"))
        token = token + NUM_TOKENS
        log_prob = log_prob + float("nan")
        if found:
            chosen = tl.min(tl.where(cumulative > level, tiles, TILES), 0)
            is_chosen = tiles == chosen
            end = tl.sum(tl.where(is_chosen, cumulative, 0.0), 0)
            scale = tl.sum(tl.where(is_chosen, scales, 0.0), 0)
            peak = tl.max(tl.where(is_chosen, peaks, float("-inf")), 0)
            z = _tile(row, chosen * BLOCK + lanes, mask_token_id, inverse_temperature, NUM_TOKENS)
            inside = tl.cumsum(tl.exp((z - _finite(peak)) * sharpness).to(tl.float64) * scale, 0)
            # Measured back from the tile's end, which is 0, as in `hf_maskdiff.sampling.chunked_inverse_cdf`.
            whole = tl.max(inside, 0)
            passed = (inside - whole) <= tl.maximum(level - end, -whole)
            column = tl.sum(passed.to(tl.int32), 0)
            token = (chosen * BLOCK + column).to(tl.int64)
            if HAS_LOG_PROBS:
                z_of = tl.max(tl.where(lanes == column, z, float("-inf")), 0)
                log_prob = ((z_of - largest) * sharpness).to(tl.float64) - tl.log(total)
    if HAS_OTHERWISE:  # noqa: SIM102 - known when the kernel is compiled, unlike the other condition
        if not found:
            token = tl.load(otherwise + at)
    tl.store(drawn + at, token)
    if HAS_LOG_PROBS:
        tl.store(log_probs + at, log_prob)


@triton.jit(do_not_specialize=["keys", "total", "of_each_purpose", "length", "first_purpose", "second_purpose"])
def noise_of_positions(
    keys,
    noise,
    total,
    of_each_purpose,
    length,
    first_purpose,
    second_purpose,
    all_purposes,
    BLOCK: tl.constexpr,
):
    """SplitMix64 with the row's key as its seed, as `hf_maskdiff.sampling.position_noise`: the same bits."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < total
    position = at % length
    key = tl.load(keys + (at % of_each_purpose) // length, mask=inside, other=0)
    purpose = tl.where(at < of_each_purpose, first_purpose, second_purpose)
    golden: tl.constexpr = -7046029254386353131  # 0x9E3779B97F4A7C15
    first_mix: tl.constexpr = -4658895280553007687  # 0xBF58476D1CE4E5B9
    second_mix: tl.constexpr = -7723592293110705685  # 0x94D049BB133111EB
    value = key + (position * all_purposes + purpose) * golden
    # Right shifts bring in copies of the sign bit, which the masks clear.
    value = (value ^ ((value >> 30) & 0x3FFFFFFFF)) * first_mix
    value = (value ^ ((value >> 27) & 0x1FFFFFFFFF)) * second_mix
    value = value ^ ((value >> 31) & 0x1FFFFFFFF)
    half = tl.full((BLOCK,), 0.5000000000000002, tl.float64)  # 0.5 + 2^-52; a bare number may be taken as float32
    unit = tl.full((BLOCK,), 4.440892098500626e-16, tl.float64)  # 2^-51
    uniform = (value >> 13).to(tl.float64) * unit + half
    tl.store(noise + at, uniform, mask=inside)
