"""Keys of which one is given: `optim.steps`, or `optim.epochs` or `run.minutes` in its place."""

from collections.abc import Mapping, Sequence

from pretrain.configuration.hints import in_file
from pretrain.configuration.key import Key
from pretrain.configuration.layers import Entry, is_nothing, value_of

_Set = Sequence[tuple[Key, Entry]]


def choose(set_: _Set, known: Mapping[str, Key]) -> tuple[list[tuple[Key, Entry]], list[str]]:
    """Keep one of the keys that stand in each other's place: that of the last layer that has one.

    A layer is a file, or all of the command line. A run's own record holds what a key came to
    beside the key: there, what was asked for counts.

    Args:
        set_: All that is set, in order.
        known: All keys, by name.

    Returns:
        What remains, in order, and what is wrong, a line each.
    """
    kept, problems = list(set_), list[str]()
    targets = dict.fromkeys(key.instead_of for key in known.values() if key.instead_of)
    for target in targets:
        rivals = [key.name for key in known.values() if target in (key.name, key.instead_of)]
        given = _last_layer([pair for pair in kept if pair[0].name in rivals])
        if target in given and given[target][1].is_record and len(given) > 1:
            del given[target]
        if len(given) > 1:
            names = " and ".join(name for name in rivals if name in given)
            layer = next(iter(given.values()))[1].layer
            problems.append(f"{names} are set; give one of them{in_file(layer)}")
        kept = [p for p in kept if p[0].name not in rivals or p in given.values()]
    return kept, problems


def _last_layer(pairs: _Set) -> dict[str, tuple[Key, Entry]]:
    """Return what the last layer that gives any of these keys gives of them, by name."""
    given: dict[str, tuple[Key, Entry]] = {}
    for key, entry in pairs:
        given.pop(key.name, None)
        if not is_nothing(value_of(entry.node)):
            given[key.name] = key, entry
    layer = next(reversed(given.values()))[1].layer if given else None
    return {name: pair for name, pair in given.items() if pair[1].layer == layer}
