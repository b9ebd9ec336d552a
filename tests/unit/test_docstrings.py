"""Each argument of a public name says its type, its range and its default."""

import inspect
import re

import pytest
from test_docs import PUBLIC, public_methods

# How the description of an argument starts.
TYPE = re.compile(
    r"(Boolean|Integer|Float|String|Array|Positive|Non-negative|Even|List|Dict|"
    r"Tuple|Sequence|Function|Path|Data|Input|Inputs|Targets|Any|Other|"
    r"Sequence of|`|0 or 1|The `History`|A `|A Keras|A matplotlib|"
    r"An? (?:built|compiled|averaging)|Keras)"
)
NUMBER = re.compile(r"^(?:Integer|Float|Positive|Non-negative|Even)")
RANGE = re.compile(
    r"[Pp]ositive|[Nn]on-negative|>=|>|in `?[\[(]|from 0|seed|less than|"
    r"at least|"
    r"any|one of|from "
)


def documented():
    """All public functions and methods with arguments, by name."""
    for name, public in PUBLIC.items():
        yield name, public
        if isinstance(public, type):
            for method, function in public_methods(public):
                yield f"{name}.{method}", function


CALLABLES = dict(documented())


def entries(text):
    """The descriptions of arguments in a docstring, by their names."""
    pattern = r"^Args:\n((?:    .*\n|\n)*)"
    section = re.search(pattern, f"{text}\n", re.MULTILINE)
    if section is None:
        return {}
    parts = re.split(r"^    (\*{0,2}\w+): ", section[1], flags=re.MULTILINE)
    return {
        name.strip("*"): " ".join(description.split())
        for name, description in zip(parts[1::2], parts[2::2], strict=True)
    }


def faults(function):
    """What the descriptions of arguments lack, by argument."""
    found = {}
    described = entries(inspect.getdoc(function) or "")
    for name, parameter in inspect.signature(function).parameters.items():
        text = described.get(name, "")
        wanted = {
            "a type": TYPE.match(text),
            "a range": not NUMBER.match(text) or RANGE.search(text),
            "a default": parameter.default is parameter.empty
            or "Defaults to" in text,
        }
        missing = [what for what, there in wanted.items() if not there]
        if missing and name != "self":
            found[name] = missing
    return found


@pytest.mark.parametrize("name", CALLABLES)
def test_each_argument_has_a_type_a_range_and_a_default(name):
    assert faults(CALLABLES[name]) == {}


def test_descriptions_that_lack_something_are_found():
    def function(first, second=1, third=2):
        """Do.

        Args:
            first: What is done.
            second: Positive integer. Defaults to `1`.
            third: Integer, the count.
        """

    expected = {"first": ["a type"], "third": ["a range", "a default"]}
    assert faults(function) == expected
