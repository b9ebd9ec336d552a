"""Text from files and paths, made safe to show in an error or a report."""

_MAX_CHARACTERS = 200


def printable(text: str) -> str:
    """Escape the text if it has characters that could control a terminal."""
    return ascii(text)[1:-1] if not text.isprintable() else text


def brief(text: str) -> str:
    """Escape the text, and shorten it if it is long."""
    if len(text) > _MAX_CHARACTERS:
        text = f"{text[:_MAX_CHARACTERS]}... ({len(text):,} characters)"
    return printable(text)
