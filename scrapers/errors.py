"""The error a user can meet, and how texts of others are shown."""


class ScrapeError(Exception):
    """Message for a user: what happened, why it matters and what to do, with the value and the path; exit code 2."""


class WriteError(Exception):
    """Our own disk would not take a file. Nothing to do with any site; `pipeline` turns it into a ScrapeError."""


def printable(text: str) -> str:
    """Return a text in which nothing but line ends controls the terminal, whoever wrote what stands in it."""
    return "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text)
