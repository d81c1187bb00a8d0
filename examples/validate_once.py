"""Validate items before a bulk write, and look up once what many of them have in common.

    python examples/validate_once.py

Sign-ups come one by one; the domain of each address must take mail, and asking for that is slow.
``validated`` runs the check before the handler: a bad item fails alone, the good ones are written.
The answers are kept by domain, so a thousand sign-ups ask as often as there are domains.
"""

import asyncio
from collections.abc import Sequence
from functools import lru_cache
from itertools import cycle

from microbatch import Batcher, ItemError
from microbatch.layers import validated

DOMAINS = {"example.org": True, "example.com": True, "gone.example": False}
asked: list[str] = []
written: list[str] = []


@lru_cache(maxsize=10_000)  # bounded: domains are the users' choice
def takes_mail(domain: str) -> bool:
    """Ask whether a domain takes mail, as a look-up in the network would."""
    asked.append(domain)
    return DOMAINS[domain]


def check(address: str) -> None:
    """Refuse an address by name; what is raised is its caller's."""
    domain = address.partition("@")[2]
    if not takes_mail(domain):
        raise ItemError(f"{domain} takes no mail", code="no_mail")


async def insert(addresses: list[str]) -> Sequence[int]:
    """Write the addresses that passed."""
    written.extend(addresses)
    return range(len(addresses))


async def main() -> None:
    """Sign up a thousand, a third of them at a domain that is gone."""
    async with Batcher(validated(insert, check)) as batcher:
        report = await batcher.submit_many_report(
            f"user{number}@{domain}" for number, domain in zip(range(1_000), cycle(DOMAINS))
        )
    print(f"{len(written)} written, {report.failed} refused: {report.errors}")
    print(f"{report.total:,} addresses checked, {len(asked)} domains asked for")


if __name__ == "__main__":
    asyncio.run(main())
