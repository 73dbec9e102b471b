"""Ground truth from the web, into the folder contract of `datasets/README.md`.

    source -> filters -> fetch (politely, safely) -> images -> sink, with a ledger

A **source** yields rows (URL, caption, what is claimed about the image) in a fixed order. A row that the **filters**
accept is taken up: the **ledger** knows it from then on, and it ends as stored, refused or failed, with a reason from
`scrapers.types.Reason`. **fetch** brings its bytes, **images** checks and re-encodes them in other processes, and the
**sink** publishes what is good strictly in the order of the source. So which images a set holds, and under which names,
does not depend on timing: a run that was killed and started again ends with the set of one that was not.
"""

__version__ = "0.1.0"
