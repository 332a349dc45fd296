"""Read by every Python that finds this folder first: its work may be done by a warm one."""

from __future__ import annotations

import os

if os.environ.get("WARM_PYTHON"):
    from warm_python import hand_over

    hand_over()
