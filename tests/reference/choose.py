"""The criterion of `choose`, pair by pair: every changed image against every other untouched one."""

from __future__ import annotations


def separation(untouched, changed, of, families, *, counts):
    """AUROC by family; an image that was drawn twice stands there twice, untouched and changed."""
    found = {}
    for family in dict.fromkeys(families):
        wins = pairs = 0
        for score, image, name in zip(changed, of, families, strict=True):
            if name != family:
                continue
            for number, (other, count) in enumerate(zip(untouched, counts, strict=True)):
                if number == image:
                    continue
                for _ in range(counts[image]):
                    for _ in range(count):
                        pairs += 1
                        wins += 1 if score > other else 0.5 if score == other else 0
        found[family] = wins / pairs if pairs else None
    return found
