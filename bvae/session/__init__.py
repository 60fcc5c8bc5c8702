"""Sessions: one folder for each invocation, the runs in it, and the processes that train them.

folder        the session folder, its record, and what a run leaves in it
continuation  how a session goes on, perhaps with more runs or epochs; shards, and how they are merged
run           where runs are trained, and in what order; one run: read its result, wait for it, or train it
listeners     what writes the files of a run while it is trained
ray_engine    runs as tasks on a Ray cluster
progress      the display of runs that other processes train

`bvae.session_files` lists every file and marker of a session folder, and who writes it.
"""

from bvae.session.folder import Session, SessionRecord

__all__ = ["Session", "SessionRecord"]
