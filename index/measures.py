"""Numbers and units written one way, so that 3' and "3 feet" are the same words to whatever compares words."""

import html
import re

_UNITS = {
    "inch": r"in|inch|inches|inchs|''|\"",
    "foot": r"ft|foot|feet|'",
    "yard": r"yd|yds|yard|yards",
    "mile": r"mile|miles",
    "millimeter": r"mm|millimeters?|millimetres?",
    "centimeter": r"cm|centimeters?|centimetres?",
    "meter": r"m|meters?|metres?",
    "pound": r"lb|lbs|pounds?|#",
    "ounce": r"oz|ounces?",
    "gram": r"g|grams?",
    "kilogram": r"kg|kilograms?",
    "gallon": r"gal|gals|gallons?",
    "quart": r"qt|qts|quarts?",
    "liter": r"l|liters?|litres?",
    "milliliter": r"ml|milliliters?|millilitres?",
    "watt": r"w|watts?",
    "volt": r"v|volts?",
    "amp": r"a|amps?|amperes?",
    "gauge": r"ga|gauges?",
    "degree": r"deg|degrees?",
    "piece": r"pc|pcs|pieces?",
    "gigabyte": r"gb|gigabytes?",
    "square foot": r"sq\.?\s*ft|sf|sqft|square\s+f(?:oo|ee)t",
    "square inch": r"sq\.?\s*in|square\s+inch(?:es)?",
    "cubic foot": r"cu\.?\s*ft|cubic\s+f(?:oo|ee)t",
}
_NUMBER = r"\d{1,9}(?:[.,]\d{1,9}){0,3}(?:[-\s]\d{1,9}/\d{1,9})?(?:/\d{1,9})?|\.\d{1,9}"
_LONGEST_FIRST = sorted(_UNITS, key=lambda unit: -len(unit))
_MEASURE = re.compile(
    rf"(?<![\w.])({_NUMBER})[\s-]{{0,3}}(?:"
    + "|".join(f"(?P<u{place}>{_UNITS[unit]})" for place, unit in enumerate(_LONGEST_FIRST))
    + r")(?=\W|\d|$|x\b)\.?"
)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
# Bounded, so that no text is slow to read or has a number that is too long for `int`.
_DECIMAL = re.compile(r"(?:(\d{1,9})|(?<![\w.]))\.(\d{1,9})")
_FRACTION = re.compile(r"(?:(\d{1,9})[-\s])?(\d{1,9})/(\d{1,9})")
_BY = re.compile(r"(?<=\d)([a-z\s]{0,16}?)(?:x|\*|\bby\b)(?=\s{0,3}\.?\d)")
_MOST_PASSES = 8
_BEFORE_NUMBER = re.compile(r"(?<=[a-z])(?<!\dp)(?<!\dof)(?=\d)")
_AFTER_NUMBER = re.compile(r"(?<=\d)(?!p\d|of\d)(?=[a-z])")


def measured(text: str) -> str:
    """The text in lower case, with units after numbers spelled out and numbers apart from letters.

    Decimals and fractions become one word each (2.5 and 2-1/2: `2p5`; 1/3: `1of3`), which a tokeniser would cut.
    What follows no number is left as it is: the "in" of "lamps in white" is no inch. Twice is like once.
    """
    plain = html.unescape(text).lower().replace("\u2019", "'").replace("\u201d", '"').replace("``", '"')
    for _ in range(_MOST_PASSES):
        written = _written(plain)
        if written.split() == plain.split():
            break
        plain = written
    return plain


def _written(plain: str) -> str:
    """Once; what is then cut off may be a number with a unit in its turn."""
    plain = _BEFORE_NUMBER.sub(" ", _BY.sub(r"\1 x ", _THOUSANDS.sub("", plain)))
    plain = _MEASURE.sub(lambda found: f"{found[1]} {_unit(found)} ", plain)
    plain = _AFTER_NUMBER.sub(" ", plain)
    return _DECIMAL.sub(_decimal, _FRACTION.sub(_fraction, plain))


def _unit(found: re.Match[str]) -> str:
    return next(unit for place, unit in enumerate(_LONGEST_FIRST) if found[f"u{place}"])


def _decimal(found: re.Match[str]) -> str:
    rest = found[2].rstrip("0")
    return f"{int(found[1] or 0)}p{rest}" if rest else str(int(found[1] or 0))


def _fraction(found: re.Match[str]) -> str:
    whole, upper, lower = int(found[1] or 0), int(found[2]), int(found[3])
    if lower and 1000 * upper % lower == 0 and upper < lower:
        rest = str(1000 * upper // lower).zfill(3).rstrip("0")
        return f"{whole}p{rest}" if rest else str(whole)
    return f"{found[1] or ''} {upper}of{lower}".strip()
