"""Business rules between the wire and the policy."""

from collections.abc import Mapping

from candidate_gen.items import Items
from candidate_gen.predicates import Attributes
from policy.rules import Rule, RuleBook, RuleKind, RulesInForce
from protos import admin_pb2
from protos.admin_pb2 import PutRulesRequest
from serving.log.catalog_log import Entry, UnknownChange

MAX_RULES = 1000
MAX_NAMES = 100
"""Surfaces or queries of a rule."""
MAX_RULE_ITEMS = 10_000
MAX_CHARS = 512
"""Of an id, a surface or a query."""
_KINDS: Mapping[int, RuleKind] = {
    admin_pb2.RULE_PIN: "pin",
    admin_pb2.RULE_BOOST: "boost",
    admin_pb2.RULE_BURY: "bury",
    admin_pb2.RULE_BLOCK: "block",
    admin_pb2.RULE_QUOTA: "quota",
}


def rule_book(request: PutRulesRequest, etag: str) -> RuleBook:
    """
    Raises:
        ValueError: naming the rule and the field, or the two rules that contradict each other.
    """
    if len(request.rules) > MAX_RULES:
        raise ValueError(f"{len(request.rules)} rules given, allowed: at most {MAX_RULES}")
    return RuleBook(tuple(map(_rule, request.rules)), etag)


def rules_after(
    put: Entry | None, before: RulesInForce | None, *, items: Items, attributes: Attributes
) -> RulesInForce | None:
    """What is in force for these items after an entry that put rules, or after one that did not.

    Raises:
        UnknownChange: where the items cannot be judged by the rules that were put.
    """
    if put is None or not isinstance(put.request, PutRulesRequest):
        return RulesInForce(before.book, items, attributes) if before else None
    try:
        rules = RulesInForce(rule_book(put.request, str(put.seq)), items, attributes)
        rules.check()
    except ValueError as error:
        raise UnknownChange(f"change {put.seq} of the catalogue put rules that cannot be followed: {error}") from error
    return rules


def _rule(rule: admin_pb2.Rule) -> Rule:
    kind = _KINDS.get(rule.kind)
    if kind is None:
        known = admin_pb2.RuleKind.Name(rule.kind) if rule.kind in admin_pb2.RuleKind.values() else rule.kind
        allowed = ", ".join(admin_pb2.RuleKind.Name(each) for each in _KINDS)
        raise ValueError(f"rule {rule.id!r}: kind is {known}; allowed: {allowed}")
    for field, texts, most in (
        ("id", [rule.id], 1),
        ("surfaces", rule.surfaces, MAX_NAMES),
        ("queries", rule.queries, MAX_NAMES),
        ("item_ids", rule.item_ids, MAX_RULE_ITEMS),
    ):
        if len(texts) > most:
            raise ValueError(f"rule {rule.id!r}: {field} are {len(texts)}; allowed: at most {most}")
        if any(not 1 <= len(text) <= MAX_CHARS for text in texts):
            raise ValueError(f"rule {rule.id[:MAX_CHARS]!r}: {field}: allowed are texts of 1 to {MAX_CHARS} characters")
    if rule.redirect_uri:
        raise ValueError(f"rule {rule.id!r}: redirect_uri is {rule.redirect_uri!r}; redirects are not supported yet")
    return Rule(
        id=rule.id,
        kind=kind,
        surfaces=tuple(rule.surfaces),
        queries=tuple(rule.queries),
        item_ids=tuple(rule.item_ids),
        condition=rule.condition,
        position=rule.position,
        strength=rule.strength,
        at_least=rule.at_least,
        at_most=rule.at_most,
        from_ms=rule.from_ms,
        until_ms=rule.until_ms,
    )
