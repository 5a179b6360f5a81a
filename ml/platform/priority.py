"""The priority of a request (RFC 9218), as far as these services use it: in the background, or not."""

PRIORITY_HEADER = "Priority"

BACKGROUND = "u=7"
"""The value of the header for the lowest urgency, which RFC 9218 (section 4.1) keeps for background work."""


def is_background(header: str) -> bool:
    """Return whether the value of a `Priority` header says that the response may wait; it is a structured dictionary.

    Of a key that is given twice, the last one counts (RFC 9651, section 3.2). Any other value has the usual priority.
    """
    urgency = ""
    for member in header.split(","):
        key, _, value = member.partition(";")[0].strip(" \t").partition("=")
        if key == "u":
            urgency = value
    return f"u={urgency}" == BACKGROUND
