"""Kestrel Stack: a durable queue, supervised workers and a one-command deploy.

Each folder is one thing: ``queue`` is what an application imports, ``consumer`` runs its jobs, ``broker`` is
the embedded Kestrel, ``deploy`` is what ``fabfile.py`` drives, ``lab`` makes containers that behave as hosts.
"""

__version__ = "0.1.0"
