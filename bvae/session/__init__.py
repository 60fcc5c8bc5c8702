"""Sessions: one folder for each invocation, the runs in it, and the processes that train them.

folder       the session folder and its record
run_folder   what a run leaves in its folder
run          obtaining one run: read, waited for, or trained
head_start   training half of a run ahead of its turn
scheduling   where runs are trained, and in what order: the door for other engines
workers      the processes of a pytest session: dealing of tests, signals, their end
progress     progress of runs in other processes
pictures     curves of a run, and the pictures of a comparison

`bvae.session_files` lists every file and marker of a session folder, and who writes it.
"""

from bvae.session.folder import Session, SessionRecord

__all__ = ["Session", "SessionRecord"]
