"""A generation as an arm of an experiment changes it: other weights, another policy, other sources. Models, index and
items are the same and are shared."""

from dataclasses import MISSING, fields, replace

from policy.selector import SlatePolicy
from policy.settings import PolicySettings
from protos.impression_pb2 import Variation
from serving.generation import Generation
from serving.retrieval import Quotas

_NUMBERS = {
    each.name: type(each.default)
    for each in fields(PolicySettings)
    if each.default is not MISSING and type(each.default) in (int, float)
}
"""Settings that an arm may change, and what they are."""


def varied(generation: Generation, variation: Variation) -> Generation:
    """The same generation where nothing is changed.

    Raises:
        ValueError: naming the setting, its value and what is allowed.
    """
    if not variation.ByteSize():
        return generation
    settings = _settings(generation, variation)
    policy = SlatePolicy(settings, generation.items, generation.id, generation.rules)
    sources = _sources(generation, variation)
    retrieval = replace(generation.retrieval, quotas={source.name: quota for source, quota in sources})
    pipeline = replace(generation.pipeline, selector=policy, sources=sources)
    return replace(generation, settings=settings, retrieval=retrieval, pipeline=pipeline)


def changeable(generation: Generation) -> Variation:
    """Everything that a variation could change, as it is: varied by it, the generation stays the same."""
    settings = generation.settings
    return Variation(
        action_weights={action: settings.weights.get(action, 0.0) for action in generation.table.actions},
        policy={name: getattr(settings, name) for name in _NUMBERS},
        quotas={source.name: quota for source, quota in generation.pipeline.sources},
    )


def without_chance(generation: Generation) -> Generation:
    """The same generation with a policy that takes the best: what cannot be logged must not be explored."""
    settings = replace(generation.settings, temperature=0.0, epsilon=0.0, fresh_floor=0.0)
    policy = SlatePolicy(settings, generation.items, generation.id, generation.rules)
    return replace(generation, settings=settings, pipeline=replace(generation.pipeline, selector=policy))


def _settings(generation: Generation, variation: Variation) -> PolicySettings:
    actions = generation.table.actions
    if unknown := sorted(set(variation.action_weights) - set(actions)):
        raise ValueError(f"action_weights: {unknown[0]!r} given, allowed: {', '.join(actions)}")
    if unknown := sorted(set(variation.policy) - set(_NUMBERS)):
        raise ValueError(f"policy: {unknown[0]!r} given, allowed: {', '.join(_NUMBERS)}")
    changed: dict[str, float | int] = {}
    for name, value in variation.policy.items():
        whole = _NUMBERS[name] is int
        if whole and not float(value).is_integer():
            raise ValueError(f"policy: {name} is {value:g}; a whole number is needed")
        changed[name] = int(value) if whole else value
    weights = dict(generation.settings.weights) | dict(variation.action_weights)
    return replace(generation.settings, weights=weights, **changed)  # type: ignore[arg-type]  # numbers, as `_NUMBERS` says


def _sources(generation: Generation, variation: Variation) -> Quotas:
    sources = generation.pipeline.sources
    names = [source.name for source, _ in sources]
    for name, quota in variation.quotas.items():
        if name not in names:
            raise ValueError(f"quotas: {name!r} given, allowed: the sources of {generation.id}, {', '.join(names)}")
        least = 1 if name == names[-1] else 0
        if quota < least:
            raise ValueError(f"quotas: {name} is {quota}; at least {least} is needed")
    chosen = [(source, variation.quotas.get(source.name, quota)) for source, quota in sources]
    return [(source, quota) for source, quota in chosen if quota]
