"""`python -m llm_journey`: the same as the command `journey`."""

from llm_journey.cli.main import run

if __name__ == "__main__":
    run()
