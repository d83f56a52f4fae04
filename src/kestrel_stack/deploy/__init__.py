"""What ``fabfile.py`` drives: an application's code goes out to every host of the group ``app``.

Three layers. ``description`` reads what people wrote (inventory, deploy.yml) and refuses what it does not
know. ``plan`` and ``scripts`` are pure: data in, decisions and text out, tested without SSH. ``commands``,
``rollout`` and ``session`` do the I/O, through ``ssh`` (hosts) and ``build`` (archive and wheels on this
machine); ``report`` is what a person sees.
"""
