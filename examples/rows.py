"""Forty short reviews, written for the examples: 0 is a complaint, 1 is praise."""

from __future__ import annotations

import torch

COMPLAINTS = """The zip broke on the second day.
Nobody answered my three letters.
It smells of glue and will not stop.
The colour is nothing like the picture.
Two screws were missing from the box.
I waited a month and then they cancelled.
The sleeve is torn and the shop refuses a refund.
Far too loud for a bedroom.
It stopped charging after a week.
The handle came off in my hand.
Cold food, rude waiter, long wait.
My order went to the wrong town.
The paper jams on every page.
Cheap plastic that cracks at once.
The app logs me out all day.
They charged me twice and blame the bank.
The lid leaks all over my bag.
A dull, slow film with no ending.
The seat hurts after ten minutes.
It arrived late and scratched."""

PRAISE = """The zip runs smoothly after two years.
They answered within the hour.
It smells fresh and lasts all day.
The colour is even better than the picture.
Every screw fitted at the first try.
It came a day early and well packed.
The shop sent a new sleeve for free.
So quiet that I forget it is on.
It charges fast and holds for a week.
The handle sits firmly in my hand.
Warm food, kind waiter, no wait.
My order found me on a tiny island.
The paper never jams.
Solid metal that will outlive me.
The app is quick and simple.
They paid me back the same day.
The lid stays tight in my bag.
A bright film that I will see again.
The seat is soft even after hours.
It arrived on time and spotless."""

TEXTS = COMPLAINTS.splitlines() + PRAISE.splitlines()
LABELS = [0] * len(COMPLAINTS.splitlines()) + [1] * len(PRAISE.splitlines())
UNSEEN = [
    "The zip broke and nobody answered.",
    "A kind shop that paid me back at once.",
    "It arrived.",
]


def batches(tokenizer, size: int = 8) -> list[dict[str, torch.Tensor]]:
    """Tokenised batches with labels, complaints and praise mixed."""
    order = torch.randperm(len(TEXTS), generator=torch.Generator().manual_seed(0)).tolist()
    chunks = [order[start : start + size] for start in range(0, len(order), size)]
    return [
        {
            **tokenizer([TEXTS[i] for i in rows], padding=True, return_tensors="pt"),
            "labels": torch.tensor([LABELS[i] for i in rows]),
        }
        for rows in chunks
    ]
