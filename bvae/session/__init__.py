"""Sessions: one folder for each invocation, the runs in it, and the processes that train them.

folder       the session folder, its record, and what a run leaves in it
run          where runs are trained, and in what order; one run: read, waited for, or trained
progress     progress of runs in other processes
pictures     curves of a run, and the pictures of a comparison

`bvae.session_files` lists every file and marker of a session folder, and who writes it.
"""

from bvae.session.folder import Session, SessionRecord

__all__ = ["Session", "SessionRecord"]
