"""The whole of `journey quickstart` as a newcomer runs it: an empty home, SmolLM2 pulled and asked, everything timed.

    python benchmarks/quickstart.py --append

Exit code 1 where it takes more than six minutes, or where the published model is not asked or does not answer "Paris".
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

import figures as shared
from figures import Figure

LIMIT = 240.0  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared.add_options(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "llm_journey", "quickstart", "--json"],
            env={**os.environ, "HOME": home, "JOURNEY_HOME": f"{home}/journey"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        seconds = time.monotonic() - began
    found = json.loads(done.stdout)
    shared.say(json.dumps(found, indent=2, ensure_ascii=False)[:3000])
    figures = [
        Figure("journey quickstart", "the whole command, SmolLM2 pulled and asked", "s", [seconds]),
        Figure("journey quickstart", "bits_per_byte", "bits/byte", [found["figures"]["bits_per_byte"]]),
    ]
    shared.report("quickstart", figures, options)
    if seconds > LIMIT or "Paris" not in json.dumps(found.get("chat")):
        sys.exit(f"FAILED: {seconds:.0f} s (at most {LIMIT:.0f}), answer {found.get('chat')!r}")


if __name__ == "__main__":
    main()
