"""Sessions: the folder of an experiment with its runs, and the processes that train the runs.

folder        the session folder, its record, its locks, and the stored results of its runs
continuation  resuming a session, possibly with more runs or epochs; shards, and merging them
run           training a run, or waiting for it, or reading its result; the interface for other engines
listeners     listeners to the trainer of a run, which write the files of the run
ray_engine    training on a Ray cluster
progress      the display of progress

`bvae.session_files` lists all files of a session folder, and the code that writes each.
"""

from bvae.session.folder import Session, SessionRecord

__all__ = ["Session", "SessionRecord"]
