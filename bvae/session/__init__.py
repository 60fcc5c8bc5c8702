"""Sessions: one folder for each invocation, the runs in it, and the processes that train them.

folder        the session folder, its record, and what a run leaves in it
continuation  resuming a session, possibly with more runs or epochs; shards, and merging them
run           where runs are trained, and in what order; one run: read its result, wait for it, or train it
listeners     listeners to the trainer of a run, which write its files
ray_engine    runs as tasks on a Ray cluster
progress      the display of runs that other processes train

`bvae.session_files` lists every file and marker of a session folder, and who writes it.
"""

from bvae.session.folder import Session, SessionRecord

__all__ = ["Session", "SessionRecord"]
