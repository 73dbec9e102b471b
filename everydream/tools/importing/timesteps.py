"""The range of timesteps by the names that other trainers give it."""

from everydream.tools.importing.draft import Draft
from everydream.tools.importing.keys import Keys


def put_range(keys: Keys, draft: Draft, least: str, most: str) -> None:
    """Set the range of timesteps: whole numbers, below the one called `most`, there; parts of the schedule here."""
    for key, ours, idle in ((least, "timesteps.min", 0), (most, "timesteps.max", 1000)):
        timestep = keys.whole(key, idle)
        if timestep != idle:
            draft.put(ours, timestep / 1000, f"{key}, in thousandths there")
        elif keys.given(key):
            draft.tell("idle", key)
