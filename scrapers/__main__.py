"""`python -m scrapers`."""

from scrapers.cli import app

if __name__ == "__main__":
    app(prog_name="python -m scrapers")
