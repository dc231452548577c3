"""The page of what was found: pairs side by side."""

from collections.abc import Sequence
from html import escape

from data.text import count
from pretrain.pictures.page import card, cards, definitions, lead, make_page, make_section
from scripts._duplicates.found import Found


def make_duplicates_page(found: Found, model: str, criterion: str, num_shown: int) -> bytes:
    """Return the page.

    Args:
        found: What was found.
        model: What compared them, as it was named.
        criterion: Which pairs these are, in words.
        num_shown: The most pairs that it shows.
    """
    number = len(found.pairs)
    rows = {
        "Images": f"{len(found.names):,}",
        "Pairs": f"{number:,}, {criterion}",
        "Groups": f"{len(found.members):,} of {count(len(found.groups), 'image')}",
        "Could go": f"{count(found.num_spare, 'image')}, if one of each group stays",
        "Features": model,
    }
    return make_page("Near-duplicate images", definitions(rows), _sections(found, num_shown))


def _sections(found: Found, num_shown: int) -> list[str]:
    number = len(found.pairs)
    if number == 0:
        return [make_section("Pairs", lead("There are none."))]
    if number <= num_shown:
        return [_section(found, "Pairs, the most alike first", range(number))]
    best, rest = range((num_shown + 1) // 2), range(number - num_shown // 2, number)
    sections = [_section(found, f"The {len(best):,} most alike pairs", best)]
    if rest:
        note = "If these are no duplicates, the threshold is too low; pairs.csv has all pairs."
        sections.append(_section(found, f"The {len(rest):,} least alike pairs", rest, [note]))
    return sections


def _section(found: Found, title: str, chosen: range, notes: Sequence[str] = ()) -> str:
    return make_section(title, cards([_pair(found, number) for number in chosen]), notes)


def _pair(found: Found, number: int) -> str:
    pairs = found.pairs
    places = int(pairs.first[number]), int(pairs.second[number])
    title = f"{pairs.similarity[number]:.4f}, group {found.groups[places[0]]}"
    return card(title, f'<div class="two">{"".join(_image(found, p) for p in places)}</div>', "")


def _image(found: Found, place: int) -> str:
    name = found.names[place]
    picture = found.archive.picture(found.positions[place], name)
    return f"<figure>{picture}<figcaption>{escape(name)}</figcaption></figure>"
