"""Sessions: one folder for each invocation, the runs in it, and the processes that train them.

folder       the session folder, its record, and what a run leaves in it
run          where runs are trained, and in what order; one run: read its result, wait for it, or train it
ray_engine   runs as tasks on a Ray cluster
progress     progress of runs in other processes

`bvae.session_files` lists every file and marker of a session folder, and who writes it.
"""

from bvae.session.folder import Session, SessionRecord

__all__ = ["Session", "SessionRecord"]
