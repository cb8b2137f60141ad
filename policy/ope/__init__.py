"""What another policy would have earned, from the log of the one that ran: pure functions on arrays.

With weight w = target propensity / logged propensity, every estimator here is a sum of means, or of ratios of two
means. They all assume that rows are independent, that logged propensities are the ones the items were drawn with,
and support: where the target policy could put an item, the logging policy could too. Where support is thin they
still compute; `diagnose` says how thin, and `require_overlap` refuses.

- `single`: one action a row.
- `slates`: K slots a row, by what a slot's reward may depend on: the whole slate, the slots above it, or itself.
- `additive`: slates whose reward is a sum over slots that need not be seen one by one.
- `overlap`: whether a log can carry an estimate.
- `interval`: what an estimate is, and how its interval is made.
- `arrays`: what is refused, and how it is named.

The reward of a slate is the sum over its slots, each times `position_weight_K` (1 where that is not given). A slate
shorter than K is padded with reward 0 and propensities that repeat the last.

Undefined values (a self-normalised mean whose weights are all 0, an interval from one row) are NaN.
"""

from policy.ope.additive import (
    cv_pseudo_inverse,
    pseudo_inverse,
    pseudo_inverse_of_pairs,
    sn_pseudo_inverse,
)
from policy.ope.interval import Estimate, Interval
from policy.ope.overlap import (
    Check,
    InsufficientOverlap,
    Overlap,
    PropensityBin,
    checks,
    diagnose,
    faults,
    least_sample_size,
    propensity_bins,
    require_overlap,
    thin_support,
)
from policy.ope.single import dm, dr, dr_os, ips, mrdr, replay, sndr, snips, switch_dr
from policy.ope.slates import (
    cascade_dr,
    iips,
    rips,
    sips,
    sn_cascade_dr,
    sn_iips,
    sn_rips,
    sn_sips,
    truncated,
)

__all__ = [
    "Check",
    "Estimate",
    "InsufficientOverlap",
    "Interval",
    "Overlap",
    "PropensityBin",
    "cascade_dr",
    "checks",
    "cv_pseudo_inverse",
    "diagnose",
    "dm",
    "dr",
    "dr_os",
    "faults",
    "iips",
    "ips",
    "least_sample_size",
    "mrdr",
    "propensity_bins",
    "pseudo_inverse",
    "pseudo_inverse_of_pairs",
    "replay",
    "require_overlap",
    "rips",
    "sips",
    "sn_cascade_dr",
    "sn_iips",
    "sn_pseudo_inverse",
    "sn_rips",
    "sn_sips",
    "sndr",
    "snips",
    "switch_dr",
    "thin_support",
    "truncated",
]
