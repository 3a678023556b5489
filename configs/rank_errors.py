"""Why a rank ended, for the report of ``accelerate launch``, which otherwise names only exit statuses."""

import json
import os
import time


def record_reason(text: str) -> None:
    """Makes ``text`` the last lines of the launcher's report; no-op without a launcher."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        with open(file, "w", encoding="utf-8") as target:
            json.dump({"message": text, "timestamp": int(time.time())}, target)
