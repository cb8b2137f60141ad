"""The draw itself, slot by slot, compiled.

The arithmetic gives the same bits on every machine: similarities are sums of whole numbers, every other sum is taken
in a fixed order, and chances and exponentials are computed here and not by a library.

Shape letters: K slots, N candidates, D embedding width, C caps, Q quotas, G groups of candidates that a cap counts
together, L = 32 lanes (candidate n is in lane n modulo L).

State, which all functions name alike:

    closed_N   bits of what forbids a candidate, one for each cap; 0: it may be drawn
    mass_N     exp((adjusted utility - reference) / temperature) of all, whether they may be drawn or not
    live_N     the mass of those that may be drawn for the slot, 0 for others; filled up to whole lanes, like open_N
    open_N     who may be drawn for the slot
    open_2L    how many of a lane may be drawn; and, where that matters, how many of these are fresh
    held_CG    candidates of a group in the slots that its cap looks at, or pinned to one of them
    owed_Q     what is left of the quotas
    pin_K      who is pinned to a slot and not placed yet; -1 for nobody
    given_up   levels of what was given up, in order, each once, then -1
"""
# ruff: noqa: PLR0917

from typing import Any

import numpy as np
from numba import njit

from policy.diversity import CODE_OF_ONE, LEAST_RESIDUAL

_EXPLORED, _RELAXED, _PINNED = 1, 4, 8
"""As in `policy.types.SlotFlag`."""
_LANES = 32
_PLACED, _RESERVED = 1 << 62, 1 << 61
"""Beside a bit for each cap: why a candidate may not be drawn."""
_SMALL, _LARGE, _MOST_EXPONENT = 2.0**-500, 2.0**500, 500.0
_FACTORIALS = (479001600.0, 39916800.0, 3628800.0, 362880.0, 40320.0, 5040.0, 720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0)
"""12! down to 0!, for the series of the exponential; the term of 13! comes before them."""
_LOG2_E, _LN2_HIGH, _LN2_LOW = 1.4426950408889634, 6.93147180369123816490e-01, 1.90821492927058770002e-10
_UNIT = 1.0 / (CODE_OF_ONE * CODE_OF_ONE)

_compiled: Any = njit(cache=True, nogil=True, boundscheck=False, error_model="numpy", fastmath={"nnan", "nsz"})
"""No sum may be reordered, nothing fused: the result is that of the source as it is written."""
_inlined: Any = njit(inline="always", boundscheck=False, error_model="numpy", fastmath={"nnan", "nsz"})
"""For what every slot does: a call would count references to every array up and down again, and so would a tuple of
arrays, which is why the arguments are many."""


@_compiled
def walk(knobs, worth_N, limits, similarity, draw):  # type: ignore[no-untyped-def] # noqa: PLR0912, PLR0915 # pragma: no cover - compiled
    """Fill the slots one after the other, with drawn candidates or with given ones.

    Args:
        worth_N: utility, and what freshness and rules add to it.
        limits: `policy.constraints.Limits`.
        similarity: `policy.diversity.Similarity`, which is used up.
        draw: the seed; whether candidates are given, and which, -1 for one that is none of these; and (K, N) or
            without rows, where P(candidate n in slot k) goes.

    Returns:
        index_K, propensity_K, flag_K, and the levels that were given up, in order and each once, then -1.
    """
    caps, quotas, pool = limits
    most_C, window_C, level_C, group_CN, first_CG, next_CN = caps
    member_N, owed_Q, flag_Q, level_Q = quotas
    barred_N, fresh_N, pin_K = pool
    code_DN, product_N, nearest_N, vector_DN, residual_N, basis_KD, changed_N, argument_N = similarity
    seed, is_given, given_K, distribution_KN = draw
    temperature, epsilon, fresh_floor, diversity, spanning = knobs
    count, size = len(worth_N), len(pin_K)
    steps = min(size, len(given_K)) if is_given else size
    index_K, propensity_K, flag_K = np.empty(steps, np.int64), np.zeros(steps), np.zeros(steps, np.uint8)
    padded = (count + _LANES - 1) // _LANES * _LANES
    closed_N, mass_N, adjusted_N = np.zeros(count, np.int64), np.zeros(count), worth_N.copy()
    live_N, open_N, open_2L, sum_L = (
        np.zeros(padded),
        np.zeros(padded, np.bool_),
        np.zeros((2, _LANES), np.int64),
        np.zeros(_LANES),
    )
    held_CG, owed_Q, pin_K, given_up = np.zeros(first_CG.shape, np.int64), owed_Q.copy(), pin_K.copy(), np.full(16, -1)

    closed_N[barred_N] = _PLACED
    for pin in pin_K:
        if pin >= 0:
            closed_N[pin] = _RESERVED
            _owe(member_N, owed_Q, pin, -1)
    _refill(closed_N, mass_N, live_N, open_N, member_N, 0, 0)
    for k in range(size):
        for c in range(len(most_C)):
            if pin_K[k] >= 0 and (window_C[c] == 0 or k < window_C[c]):
                _count(most_C, group_CN, first_CG, next_CN, held_CG, closed_N, mass_N, live_N, open_N, pin_K[k], c, 1)
    reference = _rebased(temperature, adjusted_N, mass_N, live_N, open_N)

    for k in range(steps):
        for c in range(len(most_C) if k > 0 else 0):
            # What lies too far back no longer counts, a pin ahead counts already.
            window = window_C[c]
            if window > 0 and k >= window and index_K[k - window] >= 0:
                _count(
                    most_C,
                    group_CN,
                    first_CG,
                    next_CN,
                    held_CG,
                    closed_N,
                    mass_N,
                    live_N,
                    open_N,
                    index_K[k - window],
                    c,
                    -1,
                )
            if window > 0 and k + window <= size and pin_K[k + window - 1] >= 0:
                _count(
                    most_C,
                    group_CN,
                    first_CG,
                    next_CN,
                    held_CG,
                    closed_N,
                    mass_N,
                    live_N,
                    open_N,
                    pin_K[k + window - 1],
                    c,
                    1,
                )
        pin, flag = pin_K[k], 0
        if pin >= 0:
            index = given_K[k] if is_given else pin
            flag = _PINNED
            propensity_K[k] = index == pin
            if len(distribution_KN) > 0:
                distribution_KN[k, pin] = 1.0
        else:
            required, ignored = 0, 0
            if len(owed_Q) > 0:
                required, flag = _due(closed_N, member_N, owed_Q, level_Q, pin_K, given_up, k)
            if required == 0 and not open_N.any():
                ignored = _starved(closed_N, level_C, given_up)
                flag |= _RELAXED
            if required != 0 or ignored != 0:
                _refill(closed_N, mass_N, live_N, open_N, member_N, required, ignored)
            _tally(open_N, fresh_N, fresh_floor, open_2L)
            if temperature == 0:
                _take_all(adjusted_N, live_N, open_N)
            total = _summed(live_N, sum_L)
            if temperature > 0 and not _SMALL < total < _LARGE:
                reference = _rebased(temperature, adjusted_N, mass_N, live_N, open_N)
                total = _summed(live_N, sum_L)
            of_all, fresh = epsilon / open_2L[0].sum(), open_2L[1].sum()
            of_fresh = fresh_floor / fresh if fresh > 0 else 0.0
            softmax = 1 - epsilon - (fresh_floor if fresh > 0 else 0.0)
            if is_given:
                index = given_K[k]
            else:
                index = _drawn(
                    live_N, open_N, fresh_N, open_2L, sum_L, softmax / total, of_all, of_fresh, _chance(seed, k)
                )
            if index >= 0 and open_N[index]:
                propensity_K[k] = min(softmax * (live_N[index] / total) + of_all + of_fresh * fresh_N[index], 1.0)
                flag |= _explored(live_N, index)
                for q in range(len(owed_Q)):
                    if (required & member_N[index]) >> q & 1:
                        flag |= flag_Q[q]
            for n in range(count if len(distribution_KN) > 0 else 0):
                if open_N[n]:
                    distribution_KN[k, n] = min(softmax * (live_N[n] / total) + of_all + of_fresh * fresh_N[n], 1.0)
            if required != 0 or ignored != 0:
                _refill(closed_N, mass_N, live_N, open_N, member_N, 0, 0)
        index_K[k], flag_K[k] = index, flag

        if pin != index:
            # Only given candidates can be others than those pinned there, or pinned elsewhere.
            for later in range(k, size):
                was = pin_K[later]
                if was >= 0 and (later == k or was == index):
                    pin_K[later] = -1
                    _owe(member_N, owed_Q, was, 1)
                    for c in range(len(most_C)):
                        if window_C[c] == 0 or later < k + window_C[c]:
                            _count(
                                most_C,
                                group_CN,
                                first_CG,
                                next_CN,
                                held_CG,
                                closed_N,
                                mass_N,
                                live_N,
                                open_N,
                                was,
                                c,
                                -1,
                            )
                    _reopen(closed_N, mass_N, live_N, open_N, was, _RESERVED)
            if index >= 0:
                _owe(member_N, owed_Q, index, -1)
                for c in range(len(most_C)):
                    _count(most_C, group_CN, first_CG, next_CN, held_CG, closed_N, mass_N, live_N, open_N, index, c, 1)
        if index >= 0:
            _close(closed_N, live_N, open_N, index, _PLACED)
        if index < 0 or diversity == 0 or k + 1 == steps:
            continue
        if spanning:
            changed = _spanned(vector_DN, residual_N, basis_KD, changed_N, argument_N, index, k)
        else:
            changed = _neared(code_DN, product_N, nearest_N, changed_N, index)
        for j in range(changed):
            n = changed_N[j]
            gain = np.log(max(residual_N[n], LEAST_RESIDUAL)) if spanning else -_UNIT * nearest_N[n]
            adjusted_N[n] = worth_N[n] + diversity * gain
            argument_N[j] = (adjusted_N[n] - reference) / temperature
        if temperature > 0:
            _exponentials(argument_N, changed)
            for j in range(changed):
                n = changed_N[j]
                mass_N[n] = argument_N[j]
                if closed_N[n] == 0:
                    live_N[n] = argument_N[j]
    for q in range(len(owed_Q) if steps == size else 0):
        if owed_Q[q] > 0:  # no slot was left in which it could have been given up
            _give_up(given_up, level_Q[q])
    return index_K, propensity_K, flag_K, given_up


@_inlined
def _owe(member_N, owed_Q, n, change):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    for q in range(len(owed_Q)):
        if member_N[n] >> q & 1:
            owed_Q[q] += change


@_inlined
def _count(most_C, group_CN, first_CG, next_CN, held_CG, closed_N, mass_N, live_N, open_N, n, c, change):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """One more, or one less, of the group of n: which may close or open all of it."""
    group = group_CN[c, n]
    if group >= 0:
        held_CG[c, group] += change
        held, member = held_CG[c, group], first_CG[c, group]
        if change > 0 and held == most_C[c]:
            while member >= 0:
                _close(closed_N, live_N, open_N, member, 1 << c)
                member = next_CN[c, member]
        elif change < 0 and held == most_C[c] - 1:
            while member >= 0:
                _reopen(closed_N, mass_N, live_N, open_N, member, 1 << c)
                member = next_CN[c, member]


@_inlined
def _close(closed_N, live_N, open_N, n, bit):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    closed_N[n] |= bit
    live_N[n], open_N[n] = 0.0, False


@_inlined
def _reopen(closed_N, mass_N, live_N, open_N, n, bit):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    closed_N[n] &= ~bit
    if closed_N[n] == 0:
        live_N[n], open_N[n] = mass_N[n], True


@_compiled
def _due(closed_N, member_N, owed_Q, level_Q, pin_K, given_up, k):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Bits of the quotas that leave slot k no choice, and its flag; 0 where they can wait or nobody can meet them."""
    flag, required, total, left = 0, 0, 0, 0
    for later in range(k, len(pin_K)):
        left += pin_K[later] < 0
    for owed in owed_Q:
        total += max(owed, 0)
    for q in range(len(owed_Q)):
        while total > left and owed_Q[q] > 0:
            owed_Q[q] -= 1
            total -= 1
            flag = _give_up(given_up, level_Q[q])
    if total < left:
        return 0, flag
    for q in range(len(owed_Q)):
        required |= (owed_Q[q] > 0) << q
    for n in range(len(closed_N)):
        if closed_N[n] == 0 and member_N[n] & required:
            return required, flag
    for q in range(len(owed_Q)):
        if owed_Q[q] > 0:
            owed_Q[q] -= 1
            return 0, _give_up(given_up, level_Q[q])
    return 0, flag


@_compiled
def _starved(closed_N, level_C, given_up):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Bits of the caps that must be given up so that anybody may be drawn."""
    ignored = 0
    for c in range(len(level_C)):
        ignored |= 1 << c
        _give_up(given_up, level_C[c])
        for n in range(len(closed_N)):
            if closed_N[n] & ~ignored == 0:
                return ignored
    return ignored


@_compiled
def _give_up(given_up, level):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    at = 0
    while given_up[at] >= 0 and given_up[at] != level:
        at += 1
    given_up[at] = level
    return _RELAXED


@_compiled
def _refill(closed_N, mass_N, live_N, open_N, member_N, required, ignored):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Who may be drawn if some caps are ignored, and some quota of those required has to hold them."""
    for n in range(len(closed_N)):
        is_open = closed_N[n] & ~ignored == 0 and (required == 0 or member_N[n] & required != 0)
        open_N[n] = is_open
        live_N[n] = mass_N[n] if is_open else 0.0


@_compiled
def _rebased(temperature, adjusted_N, mass_N, live_N, open_N):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Give the largest adjusted utility of those who may be drawn the mass 1; returns it, the reference."""
    reference = -np.inf
    for n in range(len(adjusted_N)):
        if open_N[n] and adjusted_N[n] > reference:
            reference = adjusted_N[n]
    if temperature > 0 and reference > -np.inf:
        for n in range(len(adjusted_N)):
            mass_N[n] = (adjusted_N[n] - reference) / temperature
        _exponentials(mass_N, len(adjusted_N))
        for n in range(len(adjusted_N)):
            live_N[n] = mass_N[n] if open_N[n] else 0.0
    return reference


@_inlined
def _tally(open_N, fresh_N, fresh_floor, open_2L):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    open_2L[:] = 0
    for start in range(0, len(open_N), _LANES):
        for lane in range(_LANES):
            open_2L[0, lane] += open_N[start + lane]
    if fresh_floor > 0:
        for n in range(len(fresh_N)):
            open_2L[1, n % _LANES] += open_N[n] and fresh_N[n]


@_inlined
def _take_all(adjusted_N, live_N, open_N):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """At temperature 0 the first of the largest has all the mass."""
    first = -1
    for n in range(len(adjusted_N)):
        if open_N[n] and (first < 0 or adjusted_N[n] > adjusted_N[first]):
            first = n
    live_N[:] = 0.0
    live_N[first] = 1.0


@_inlined
def _summed(live_N, sum_L):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Mass of all who may be drawn, by lane and in total."""
    sum_L[:] = 0.0
    for start in range(0, len(live_N), _LANES):
        for lane in range(_LANES):
            sum_L[lane] += live_N[start + lane]
    total = 0.0
    for lane in range(_LANES):
        total += sum_L[lane]
    return total


@_inlined
def _explored(live_N, index):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    heavier = 0
    for n in range(len(live_N)):
        heavier += live_N[n] > live_N[index]
    return _EXPLORED if heavier > 0 else 0


@_inlined
def _drawn(live_N, open_N, fresh_N, open_2L, sum_L, by_mass, of_all, of_fresh, chance):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Inverse of the cumulative distribution, lane after lane, at a chance below 1; nobody of probability 0."""
    reached, last = 0.0, -1
    for lane in range(_LANES):
        step = by_mass * sum_L[lane] + of_all * open_2L[0, lane] + of_fresh * open_2L[1, lane]
        # The last lane with anybody takes what rounding left over.
        if step > 0:
            last = lane
        if reached + step > chance and step > 0:
            break
        reached += step
    drawn = -1
    for n in range(last, len(fresh_N), _LANES):
        probability = by_mass * live_N[n] + of_all + of_fresh * fresh_N[n]
        if open_N[n] and probability > 0:
            drawn = n
            reached += probability
            if reached > chance:
                break
    return drawn


@_inlined
def _chance(seed, k):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Uniform in [0, 1), the k-th of a seed: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    z = seed + np.uint64(k + 1) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return np.float64(z >> np.uint64(11)) * 2.0**-53


@_compiled
def _exponentials(x_N, count):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """exp(x) in place of x, to the last bit or two: 0 below -700, no further than `_MOST_EXPONENT`."""
    for n in range(count):
        x = min(max(x_N[n], -708.0), _MOST_EXPONENT)
        twos = np.floor(x * _LOG2_E + 0.5)
        r = (x - twos * _LN2_HIGH) - twos * _LN2_LOW
        series = 1 / 6227020800.0
        for factor in _FACTORIALS:
            series = series * r + 1 / factor
        power = np.int64((np.int64(twos) + 1023) << 52).view(np.float64)
        x_N[n] = series * power if x_N[n] > -700.0 else 0.0


@_inlined
def _neared(code_DN, product_N, nearest_N, changed_N, index):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Note for whom the candidate just placed is the nearest of all placed; returns how many they are."""
    product_N[:] = 0
    for i in range(0, len(code_DN), 4):  # four at a time, for each time the products are read and written
        a, b = np.int32(code_DN[i, index]), np.int32(code_DN[i + 1, index])
        c, d = np.int32(code_DN[i + 2, index]), np.int32(code_DN[i + 3, index])
        for n in range(len(product_N)):
            product_N[n] += (np.int32(code_DN[i, n]) * a + np.int32(code_DN[i + 1, n]) * b) + (
                np.int32(code_DN[i + 2, n]) * c + np.int32(code_DN[i + 3, n]) * d
            )
    changed = 0
    for n in range(len(changed_N)):
        if product_N[n] > nearest_N[n]:
            nearest_N[n] = product_N[n]
            changed_N[changed] = n
            changed += 1
    return changed


@_compiled
def _spanned(vector_DN, residual_N, basis_KD, changed_N, argument_N, index, k):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Add the candidate placed in slot k to the span; returns for how many that changes something."""
    new_D = vector_DN[:, index].copy()
    for twice in range(2 * k):  # once leaves rounding errors that grow with the slate
        along = 0.0
        for i in range(len(new_D)):
            along += new_D[i] * basis_KD[twice % k, i]
        for i in range(len(new_D)):
            new_D[i] -= along * basis_KD[twice % k, i]
    squared = 0.0
    for i in range(len(new_D)):
        squared += new_D[i] * new_D[i]
    if squared <= LEAST_RESIDUAL:
        return 0
    argument_N[:] = 0.0
    for i in range(len(new_D)):
        basis_KD[k, i] = new_D[i] / np.sqrt(squared)
        for n in range(len(argument_N)):
            argument_N[n] += vector_DN[i, n] * basis_KD[k, i]
    for n in range(len(argument_N)):
        residual_N[n] -= argument_N[n] * argument_N[n]
        changed_N[n] = n
    return len(argument_N)
