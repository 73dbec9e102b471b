"""The error a user can meet."""


class ScrapeError(Exception):
    """Message for a user: what happened, why it matters and what to do, with the value and the path; exit code 2."""
